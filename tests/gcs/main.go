// Google's storage for tests: the emulator fake-gcs-server, which keeps objects, generations and their conditions, and
// before it what that lacks and obstore speaks: Google's XML, as its documentation says it (writes, conditions, uploads
// in parts, pages, errors, a token).
package main

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

const (
	most    = 1000
	account = "tests@grape.test"
)

type door struct {
	behind http.Handler
	token  string
	lock   sync.Mutex
	begun  map[string]*upload
}

// An upload in parts.
type upload struct {
	headers http.Header
	parts   map[int][]byte
}

// What the emulator says of an object.
type object struct {
	Name       string `json:"name"`
	Size       string `json:"size"`
	Etag       string `json:"etag"`
	Generation string `json:"generation"`
	Updated    string `json:"updated"`
}

type content struct {
	Key          string
	LastModified string
	ETag         string
	Size         string
	Generation   string
}

type list struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name                  string
	Prefix                string
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	Contents              []content
}

func main() {
	listen := flag.String("listen", "127.0.0.1:4443", "where it listens")
	directory := flag.String("directory", "", "of its files; \"\": in memory")
	token := flag.String("token", "", "that every request has to have; \"\": none")
	flag.Parse()
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, StorageRoot: *directory})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(*listen, &door{server.HTTPHandler(), *token, sync.Mutex{}, map[string]*upload{}}))
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	if strings.HasPrefix(path, "/storage/v1/") || strings.HasPrefix(path, "/_internal/") {
		d.behind.ServeHTTP(w, r)
		return
	}
	if d.token != "" && !d.lets(r.Header.Get("Authorization")) {
		refuse(w, r, 401, "AuthenticationRequired", "Authentication required.")
		return
	}
	bucket, escaped, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	key, err := url.PathUnescape(escaped)
	if err != nil {
		refuse(w, r, 400, "InvalidURI", "Couldn't parse the specified URI.")
		return
	}
	if d.ask("GET", "/storage/v1/b/"+bucket, nil, nil).Code != 200 {
		refuse(w, r, 404, "NoSuchBucket", "The specified bucket does not exist.")
		return
	}
	query := r.URL.Query()
	switch {
	case key == "" && r.Method == "GET":
		d.list(w, r, bucket)
	case query.Has("uploadId"):
		d.part(w, r, bucket, key)
	case r.Method == "GET" || r.Method == "HEAD" || r.Method == "DELETE":
		d.pass(w, r, bucket, key)
	case r.Method == "POST" && query.Has("uploads"):
		d.begin(w, r, bucket, key)
	case r.Method == "PUT":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // it was given up
		}
		if made, ok := d.put(w, r, bucket, key, r.Header, body, r.Header.Get("x-goog-if-generation-match")); ok {
			w.Header().Set("ETag", made.Etag)
			w.Header().Set("x-goog-generation", made.Generation)
		}
	default:
		refuse(w, r, 405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
	}
}

// lets one in who has the token, or whom a service account has signed (as it says: the signature is not looked at).
func (d *door) lets(authorization string) bool {
	token, is := strings.CutPrefix(authorization, "Bearer ")
	if !is || token == d.token {
		return is
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[2] == "" {
		return false
	}
	var said struct {
		Iss, Scope string
		Exp        int64
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	return err == nil && json.Unmarshal(raw, &said) == nil && said.Iss == account &&
		strings.Contains(said.Scope, "cloud-platform") && said.Exp > time.Now().Unix()
}

// ask the emulator by its JSON.
func (d *door) ask(method, where string, headers http.Header, body []byte) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, "http://storage.test"+where, bytes.NewReader(body))
	for name, values := range headers {
		request.Header[name] = values
	}
	answer := httptest.NewRecorder()
	d.behind.ServeHTTP(answer, request)
	return answer
}

func where(bucket, key string) string {
	return "/storage/v1/b/" + bucket + "/o/" + url.PathEscape(key)
}

func (d *door) pass(w http.ResponseWriter, r *http.Request, bucket, key string) {
	answer := d.ask("GET", where(bucket, key), nil, nil)
	if answer.Code != 200 {
		refuse(w, r, 404, "NoSuchKey", "The specified key does not exist.")
		return
	}
	if r.Method == "DELETE" {
		if d.ask("DELETE", where(bucket, key), nil, nil).Code >= 300 {
			refuse(w, r, 404, "NoSuchKey", "The specified key does not exist.")
			return
		}
		w.WriteHeader(204)
		return
	}
	inner := r.Clone(r.Context())
	inner.URL, _ = url.Parse("http://storage.test" + where(bucket, key) + "?alt=media")
	inner.Host, inner.RequestURI = "storage.test", ""
	d.behind.ServeHTTP(w, inner)
}

// put an object: by the form of the emulator that looks at conditions.
func (d *door) put(
	w http.ResponseWriter, r *http.Request, bucket, key string, headers http.Header, body []byte, generation string,
) (object, bool) {
	metadata := map[string]string{}
	for name, values := range headers {
		if short, is := strings.CutPrefix(strings.ToLower(name), "x-goog-meta-"); is {
			metadata[short] = values[0]
		}
	}
	kind := headers.Get("Content-Type")
	if kind == "" {
		kind = "application/octet-stream"
	}
	about, _ := json.Marshal(map[string]any{"name": key, "contentType": kind, "metadata": metadata})
	form := &bytes.Buffer{}
	writer := multipart.NewWriter(form)
	for _, each := range []struct {
		kind string
		data []byte
	}{{"application/json", about}, {kind, body}} {
		part, _ := writer.CreatePart(textproto.MIMEHeader{"Content-Type": {each.kind}})
		part.Write(each.data)
	}
	writer.Close()
	query := url.Values{"uploadType": {"multipart"}}
	if generation != "" {
		query.Set("ifGenerationMatch", generation)
	}
	answer := d.ask("POST", "/upload/storage/v1/b/"+bucket+"/o?"+query.Encode(),
		http.Header{"Content-Type": {"multipart/related; boundary=" + writer.Boundary()}}, form.Bytes())
	var made object
	switch {
	case answer.Code == 412:
		refuse(w, r, 412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
		return made, false
	case answer.Code != 200 || json.Unmarshal(answer.Body.Bytes(), &made) != nil:
		refuse(w, r, 500, "InternalError", answer.Body.String())
		return made, false
	}
	made.Etag = strconv.Quote(made.Etag)
	return made, true
}

func (d *door) begin(w http.ResponseWriter, r *http.Request, bucket, key string) {
	id := make([]byte, 16)
	rand.Read(id)
	d.lock.Lock()
	d.begun[hex.EncodeToString(id)] = &upload{r.Header.Clone(), map[int][]byte{}}
	d.lock.Unlock()
	fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%x</UploadId></InitiateMultipartUploadResult>", id)
}

func (d *door) part(w http.ResponseWriter, r *http.Request, bucket, key string) {
	id := r.URL.Query().Get("uploadId")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	d.lock.Lock()
	defer d.lock.Unlock()
	begun := d.begun[id]
	switch {
	case begun == nil:
		refuse(w, r, 404, "NoSuchUpload", "The requested upload was not found.")
	case r.Method == "DELETE":
		delete(d.begun, id)
		w.WriteHeader(204)
	case r.Method == "PUT":
		number, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		begun.parts[number] = body
		w.Header().Set("ETag", fmt.Sprintf("\"%x\"", md5.Sum(body)))
	default:
		numbers := []int{}
		for number := range begun.parts {
			numbers = append(numbers, number)
		}
		sort.Ints(numbers)
		whole := []byte{}
		for _, number := range numbers {
			whole = append(whole, begun.parts[number]...)
		}
		if made, ok := d.put(w, r, bucket, key, begun.headers, whole, ""); ok {
			delete(d.begun, id)
			w.Header().Set("x-goog-generation", made.Generation)
			answer(w, struct {
				XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
				ETag    string
			}{ETag: made.Etag})
		}
	}
}

func (d *door) list(w http.ResponseWriter, r *http.Request, bucket string) {
	query := r.URL.Query()
	after := max(query.Get("start-after"), query.Get("continuation-token"))
	limit, err := strconv.Atoi(query.Get("max-keys"))
	if err != nil || limit > most {
		limit = most
	}
	asked := url.Values{"prefix": {query.Get("prefix")}, "startOffset": {after}}
	var found struct {
		Items []object `json:"items"`
	}
	json.Unmarshal(d.ask("GET", "/storage/v1/b/"+bucket+"/o?"+asked.Encode(), nil, nil).Body.Bytes(), &found)
	sort.Slice(found.Items, func(i, j int) bool { return found.Items[i].Name < found.Items[j].Name })
	told := list{Name: bucket, Prefix: query.Get("prefix")}
	for _, each := range found.Items {
		if each.Name <= after && after != "" {
			continue
		}
		if len(told.Contents) == limit {
			told.IsTruncated, told.NextContinuationToken = true, told.Contents[limit-1].Key
			break
		}
		told.Contents = append(told.Contents,
			content{each.Name, each.Updated, strconv.Quote(each.Etag), each.Size, each.Generation})
	}
	answer(w, told)
}

func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/xml; charset=UTF-8")
	raw, _ := xml.Marshal(what)
	w.Write([]byte(xml.Header))
	w.Write(raw)
}

func refuse(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml; charset=UTF-8")
	w.WriteHeader(status)
	if r.Method != "HEAD" {
		raw, _ := xml.Marshal(struct {
			XMLName xml.Name `xml:"Error"`
			Code    string
			Message string
		}{Code: code, Message: message})
		w.Write(append([]byte(xml.Header), raw...))
	}
}
