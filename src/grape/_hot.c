/* grape._hot: the loops of grape/hot/pure.py, which says what each of them does.

   The C API of CPython 3.11 to 3.14, public functions alone. Nothing is kept between two calls but the types and names
   in the state of the module, so every interpreter may have one of its own. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#if PY_VERSION_HEX < 0x030C0000
#define READY(text) (PyUnicode_READY(text) == 0)
#else
#define READY(text) 1
#endif

#define MEASURE_EMITS 32768
#define MEASURE_BYTES (4 << 20)
#define MOST_PARTITIONS 65536

/* ---------------------------------------------------------------- the state of the module */

/* Names of attributes: first those of an event, in its order. */
enum { NAME, KEY, DATA, LINEAGE, INDEX, FIELDS, NAMES = FIELDS, KEYS, MEASURE, CELLS, TEXTS = CELLS + 9 };

static const char *const texts[TEXTS] = {
    "name", "key", "data", "lineage", "index", "names", "keys", "measure",
    "attributes", "name", "values", "dirty", "missing", "default", "packed", "read", "checked",
};

typedef struct {
    PyTypeObject *tip_type;
    PyTypeObject *emit_type;
    PyTypeObject *sorter_type;
    uint32_t crcs[256];
    PyObject *texts[TEXTS];
} State;

static struct PyModuleDef definition;

static State *
state_of(PyObject *module)
{
    return (State *)PyModule_GetState(module);
}

/* ---------------------------------------------------------------- values */

/* Bytes of a text in UTF-8; -1 if it is none, or has half of a surrogate pair. Sets no error. */
static Py_ssize_t
utf8_size(PyObject *value)
{
    if (!PyUnicode_CheckExact(value) || !READY(value)) {
        PyErr_Clear();
        return -1;
    }
    Py_ssize_t length = PyUnicode_GET_LENGTH(value);
    if (PyUnicode_IS_ASCII(value)) {
        return length;
    }
    int kind = PyUnicode_KIND(value);
    const void *characters = PyUnicode_DATA(value);
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, characters, i);
        if (c >= 0xD800 && c < 0xE000) {
            return -1;
        }
        size += c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    }
    return size;
}

/* Whether an int has at most 64 bits. */
static int
is_int64(PyObject *value)
{
    if (!PyLong_CheckExact(value)) {
        return 0;
    }
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    (void)number;
    return !overflow;
}

static int
check_list(PyObject *value, const char *what)
{
    if (PyList_CheckExact(value)) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "%s is a list, not %.100s", what, Py_TYPE(value)->tp_name);
    return 0;
}

static int
check_count(const char *function, Py_ssize_t found, Py_ssize_t wanted)
{
    if (found == wanted) {
        return 1;
    }
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", function, wanted, found);
    return 0;
}

/* ---------------------------------------------------------------- functions of the payload */

static PyObject *
map_texts(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (!check_count("map_texts", nargs, 4) || !check_list(args[1], "column") || !check_list(args[2], "out")) {
        return NULL;
    }
    PyObject *function = args[0], *column = args[1], *out = args[2];
    Py_ssize_t largest = PyLong_AsSsize_t(args[3]);
    if (largest == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(column); i++) {
        PyObject *value = Py_NewRef(PyList_GET_ITEM(column, i));
        PyObject *result = PyObject_CallOneArg(function, value);
        Py_DECREF(value);
        if (result == NULL) {
            return NULL;
        }
        if (total >= 0) {
            Py_ssize_t size = utf8_size(result);
            total = size < 0 || size > largest ? -1 : total + size;
        }
        int failed = PyList_Append(out, result);
        Py_DECREF(result);
        if (failed) {
            return NULL;
        }
    }
    return PyLong_FromSsize_t(total);
}

/* ---------------------------------------------------------------- events */

/* What the events of a stage are made of, and the one that was made last. Names and keys are owned, as the event. */
typedef struct {
    PyObject *make, *stage, *data, *indexes, *names, *keys;
    Py_ssize_t offsets[FIELDS]; /* of the fields in an event, if it can be used again */
    int is_reusable;
    PyObject *event;
} Events;

/* Where a slot of a class lies in its instances; -1: it is none. */
static Py_ssize_t
offset_of(PyTypeObject *type, PyObject *field)
{
    PyObject *found = PyObject_GetAttr((PyObject *)type, field);
    if (found == NULL) {
        PyErr_Clear();
        return -1;
    }
    Py_ssize_t offset = -1;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        PyMemberDescrObject *slot = (PyMemberDescrObject *)found;
        if (PyDescr_TYPE(slot) == type && slot->d_member->type == T_OBJECT_EX && !(slot->d_member->flags & READONLY)) {
            offset = slot->d_member->offset;
        }
    }
    Py_DECREF(found);
    return offset;
}

static void
end_events(Events *events)
{
    Py_CLEAR(events->names);
    Py_CLEAR(events->keys);
    Py_CLEAR(events->event);
}

/* ``args``: make, stage, data, indexes. If it fails nothing has to be ended. */
static int
begin_events(Events *events, State *state, PyObject *const *args)
{
    *events = (Events){.make = args[0], .stage = args[1], .data = args[2], .indexes = args[3]};
    events->names = PyObject_GetAttr(events->stage, state->texts[NAMES]);
    events->keys = events->names == NULL ? NULL : PyObject_GetAttr(events->stage, state->texts[KEYS]);
    if (events->keys == NULL || !check_list(events->indexes, "indexes") ||
        (events->keys != Py_None && !check_list(events->keys, "keys")) ||
        (events->data != Py_None && !check_list(events->data, "data")) ||
        (!PyUnicode_Check(events->names) && !check_list(events->names, "names"))) {
        end_events(events);
        return 0;
    }
#ifndef Py_GIL_DISABLED
    if (PyType_Check(events->make)) {
        events->is_reusable = 1;
        for (int i = 0; i < FIELDS; i++) {
            events->offsets[i] = offset_of((PyTypeObject *)events->make, state->texts[i]);
            events->is_reusable = events->is_reusable && events->offsets[i] >= 0;
        }
    }
#endif
    return 1;
}

/* A borrowed item of a column, or what stands for all; NULL without an error: there is none. */
static PyObject *
item_of(PyObject *column, Py_ssize_t at)
{
    if (!PyList_CheckExact(column)) {
        return column;
    }
    return at < PyList_GET_SIZE(column) ? PyList_GET_ITEM(column, at) : NULL;
}

/* Make ``events->event`` the one at this place: 1; 0 if there is none, -1 with an error. */
static int
next_event(Events *events, Py_ssize_t at)
{
    if (at >= PyList_GET_SIZE(events->indexes)) {
        return 0;
    }
    PyObject *fields[FIELDS] = {
        item_of(events->names, at), item_of(events->keys, at),
        item_of(events->data, at), events->stage, PyList_GET_ITEM(events->indexes, at),
    };
    if (fields[NAME] == NULL || fields[KEY] == NULL || fields[DATA] == NULL) {
        return 0;
    }
    for (int i = 0; i < FIELDS; i++) {
        Py_INCREF(fields[i]);
    }
    if (events->is_reusable && events->event != NULL && Py_REFCNT(events->event) == 1) {
        PyObject *old[FIELDS]; /* let go when all is in place: that may run whatever a handler has put there */
        for (int i = 0; i < FIELDS; i++) {
            PyObject **slot = (PyObject **)((char *)events->event + events->offsets[i]);
            old[i] = *slot;
            *slot = fields[i];
        }
        for (int i = 0; i < FIELDS; i++) {
            Py_XDECREF(old[i]);
        }
        return 1;
    }
    PyObject *made = PyObject_Vectorcall(events->make, fields, FIELDS, NULL);
    for (int i = 0; i < FIELDS; i++) {
        Py_DECREF(fields[i]);
    }
    Py_XSETREF(events->event, made);
    return made == NULL ? -1 : 1;
}

/* What a handler returned goes to ``returned``. Takes over the reference. */
static int
hand_over(Events *events, Py_ssize_t at, PyObject *result, PyObject *returned)
{
    if (result == Py_None) {
        Py_DECREF(result);
        return 1;
    }
    PyObject *name = Py_XNewRef(item_of(events->names, at));
    if (name == NULL) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_IndexError, "names became shorter");
        return 0;
    }
    PyObject *answer = PyObject_CallFunctionObjArgs(returned, name, result, NULL);
    Py_DECREF(name);
    Py_DECREF(result);
    Py_XDECREF(answer);
    return answer != NULL;
}

static int
append_size(PyObject *marks, PyObject *emitted)
{
    PyObject *mark = PyLong_FromSsize_t(PyList_GET_SIZE(emitted));
    if (mark == NULL) {
        return 0;
    }
    int failed = PyList_Append(marks, mark);
    Py_DECREF(mark);
    return !failed;
}

static PyObject *
run_events(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Events events;
    if (!check_count("run_events", nargs, 8) || !check_list(args[5], "marks") || !check_list(args[6], "emitted") ||
        !begin_events(&events, state_of(module), args + 1)) {
        return NULL;
    }
    PyObject *process = args[0], *marks = args[5], *emitted = args[6], *returned = args[7];
    int more;
    for (Py_ssize_t at = 0; (more = next_event(&events, at)) > 0; at++) {
        PyObject *result = PyObject_CallOneArg(process, events.event);
        if (result == NULL || !hand_over(&events, at, result, returned) || !append_size(marks, emitted)) {
            more = -1;
            break;
        }
    }
    end_events(&events);
    if (more < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The cells of a node, as pure.Cells has them; all owned. */
typedef struct {
    PyObject *attributes, *name, *values, *dirty, *missing, *by_default, *packed, *read, *checked;
} Cells;

static void
end_cells(Cells *cells)
{
    for (PyObject **each = (PyObject **)cells; each != (PyObject **)(cells + 1); each++) {
        Py_CLEAR(*each);
    }
}

static int
begin_cells(Cells *cells, State *state, PyObject *from)
{
    *cells = (Cells){NULL};
    PyObject **all = (PyObject **)cells;
    for (int i = 0; CELLS + i < TEXTS; i++) {
        all[i] = PyObject_GetAttr(from, state->texts[CELLS + i]);
        if (all[i] == NULL) {
            end_cells(cells);
            return 0;
        }
    }
    if (!PyDict_Check(cells->attributes) || !PyDict_Check(cells->values) || !PyDict_Check(cells->dirty)) {
        PyErr_SetString(PyExc_TypeError, "attributes, values and dirty are dicts");
        end_cells(cells);
        return 0;
    }
    return 1;
}

/* What the handler finds: a new reference, NULL with an error. */
static PyObject *
value_before(Cells *cells, PyObject *key)
{
    PyObject *found = PyDict_GetItemWithError(cells->values, key);
    if (found == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetObject(PyExc_KeyError, key);
        }
        return NULL;
    }
    PyObject *old = Py_NewRef(found == cells->missing ? cells->by_default : found);
    if (found != cells->missing && (PyObject *)Py_TYPE(old) == cells->packed) {
        Py_SETREF(old, PyObject_CallOneArg(cells->read, old));
    }
    if (old != NULL && PyDict_SetItem(cells->attributes, cells->name, old)) {
        Py_CLEAR(old);
    }
    return old;
}

/* What it has left there becomes the value of the key, if it is another object. */
static int
keep_value(Cells *cells, PyObject *key, PyObject *old)
{
    PyObject *new = PyDict_GetItemWithError(cells->attributes, cells->name);
    if (new == NULL) {
        if (PyErr_Occurred()) {
            return 0;
        }
        new = cells->missing;
    }
    if (new == old) {
        return 1;
    }
    Py_INCREF(new);
    if (!is_int64(new)) {
        Py_SETREF(new, PyObject_CallOneArg(cells->checked, new));
    }
    int kept = new != NULL && !PyDict_SetItem(cells->values, key, new) && !PyDict_SetItem(cells->dirty, key, Py_None);
    Py_XDECREF(new);
    return kept;
}

static PyObject *
count_events(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Events events;
    Cells cells;
    if (!check_count("count_events", nargs, 9) || !check_list(args[5], "marks") || !check_list(args[6], "emitted") ||
        !begin_events(&events, state_of(module), args + 1)) {
        return NULL;
    }
    if (!check_list(events.keys, "keys") || !begin_cells(&cells, state_of(module), args[8])) {
        end_events(&events);
        return NULL;
    }
    PyObject *process = args[0], *marks = args[5], *emitted = args[6], *returned = args[7];
    PyObject *key = NULL, *old = NULL;
    int more;
    for (Py_ssize_t at = 0; (more = next_event(&events, at)) > 0; at++) {
        Py_XSETREF(key, Py_NewRef(PyList_GET_ITEM(events.keys, at)));
        Py_XSETREF(old, value_before(&cells, key));
        PyObject *result = old == NULL ? NULL : PyObject_CallOneArg(process, events.event);
        if (result == NULL || !hand_over(&events, at, result, returned) || !keep_value(&cells, key, old) ||
            !append_size(marks, emitted)) {
            more = -1;
            break;
        }
    }
    Py_XDECREF(key);
    Py_XDECREF(old);
    end_cells(&cells);
    end_events(&events);
    if (more < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- emits */

typedef struct {
    PyObject_HEAD
    PyObject *data, *keys, *name;
    Py_ssize_t big, measured;
} Tip;

static int
tip_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    Tip *tip = (Tip *)self;
    Py_XSETREF(tip->data, PyList_New(0));
    Py_XSETREF(tip->keys, PyList_New(0));
    Py_XSETREF(tip->name, Py_NewRef(Py_None));
    tip->big = tip->measured = 0;
    return tip->data == NULL || tip->keys == NULL ? -1 : 0;
}

static int
tip_traverse(PyObject *self, visitproc visit, void *arg)
{
    Tip *tip = (Tip *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(tip->data);
    Py_VISIT(tip->keys);
    Py_VISIT(tip->name);
    return 0;
}

static int
tip_clear(PyObject *self)
{
    Tip *tip = (Tip *)self;
    Py_CLEAR(tip->data);
    Py_CLEAR(tip->keys);
    Py_CLEAR(tip->name);
    return 0;
}

static void
tip_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    tip_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef tip_members[] = {
    {"data", T_OBJECT_EX, offsetof(Tip, data), READONLY, "one an emit"},
    {"keys", T_OBJECT_EX, offsetof(Tip, keys), READONLY, "shorter than data while what follows all inherits"},
    {"name", T_OBJECT_EX, offsetof(Tip, name), 0, "of the last emit"},
    {"big", T_PYSSIZET, offsetof(Tip, big), 0, "bytes of keys and large values since it was measured"},
    {"measured", T_PYSSIZET, offsetof(Tip, measured), 0, "emits that were measured"},
    {NULL},
};

static PyType_Slot tip_slots[] = {
    {Py_tp_doc, "Columns that grow emit by emit: see grape.hot.pure.Tip."},
    {Py_tp_init, tip_init},
    {Py_tp_traverse, tip_traverse},
    {Py_tp_clear, tip_clear},
    {Py_tp_dealloc, tip_dealloc},
    {Py_tp_members, tip_members},
    {0, NULL},
};

static PyType_Spec tip_spec = {
    "grape._hot.Tip", sizeof(Tip), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, tip_slots,
};

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *tip, *slow, *inherit, *partitions;
    PyObject *key_name, *measure, *weakrefs;
    Py_ssize_t small;
} Emit;

static int
is_alive(Emit *emit)
{
    if (emit->tip != NULL && emit->slow != NULL && emit->partitions != NULL) {
        return 1;
    }
    PyErr_SetString(PyExc_RuntimeError, "this emitter is no more");
    return 0;
}

/* Emits were appended, with so many bytes that count: 1, -1 with an error. */
static int
count_emits(Emit *emit, Py_ssize_t size)
{
    Tip *tip = (Tip *)emit->tip;
    tip->big += size;
    if (tip->big > MEASURE_BYTES || PyList_GET_SIZE(tip->data) - tip->measured >= MEASURE_EMITS) {
        PyObject *done = PyObject_CallMethodNoArgs(emit->tip, emit->measure);
        if (done == NULL) {
            return -1;
        }
        Py_DECREF(done);
    }
    return 1;
}

/* The short way of an emit: 1, or 0 if it is none of the usual ones; -1 with an error. */
static int
emit_shortly(Emit *emit, PyObject *event, PyObject *data, PyObject *key)
{
    Tip *tip = (Tip *)emit->tip;
    if (event != tip->name || tip->data == NULL || tip->keys == NULL) {
        return 0;
    }
    Py_ssize_t size = 0; /* that counts: of short text only beside a key */
    if (PyUnicode_CheckExact(data)) {
        size = utf8_size(data);
        if (size < 0 || size > emit->small) {
            return 0;
        }
        if (!PyUnicode_IS_ASCII(data)) {
            size = PyUnicode_GET_LENGTH(data);
        }
        else if (key == NULL) {
            size = 0;
        }
    }
    else if (data != Py_None && !PyBool_Check(data) && !PyFloat_CheckExact(data) && !is_int64(data)) {
        return 0;
    }
    if (key != NULL) {
        if (!PyUnicode_CheckExact(key) || PyList_GET_SIZE(tip->keys) != PyList_GET_SIZE(tip->data)) {
            return 0;
        }
        int is_known = PyDict_Contains(emit->partitions, key);
        if (is_known <= 0) {
            return is_known;
        }
        if (PyList_Append(tip->keys, key)) {
            return -1;
        }
        size += PyUnicode_GET_LENGTH(key);
    }
    if (PyList_Append(tip->data, data)) {
        if (key != NULL) {
            (void)PyList_SetSlice(tip->keys, PyList_GET_SIZE(tip->data), PyList_GET_SIZE(tip->keys), NULL);
        }
        return -1;
    }
    return count_emits(emit, size);
}

static PyObject *
emit_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Emit *emit = (Emit *)self;
    if (!is_alive(emit)) {
        return NULL;
    }
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (nargs >= 1 && nargs <= 2 && named <= 1) {
        PyObject *key = NULL;
        int is_usual = 1;
        if (named) {
            key = args[nargs];
            is_usual = PyTuple_GET_ITEM(names, 0) == emit->key_name;
        }
        if (key == emit->inherit) {
            key = NULL;
        }
        if (is_usual) {
            int done = emit_shortly(emit, args[0], nargs == 2 ? args[1] : Py_None, key);
            if (done < 0) {
                return NULL;
            }
            if (done) {
                Py_RETURN_NONE;
            }
        }
    }
    return PyObject_Vectorcall(emit->slow, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
}

static int
emit_traverse(PyObject *self, visitproc visit, void *arg)
{
    Emit *emit = (Emit *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(emit->tip);
    Py_VISIT(emit->slow);
    Py_VISIT(emit->inherit);
    Py_VISIT(emit->partitions);
    return 0;
}

static int
emit_clear(PyObject *self)
{
    Emit *emit = (Emit *)self;
    Py_CLEAR(emit->tip);
    Py_CLEAR(emit->slow);
    Py_CLEAR(emit->inherit);
    Py_CLEAR(emit->partitions);
    Py_CLEAR(emit->key_name);
    Py_CLEAR(emit->measure);
    return 0;
}

static void
emit_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((Emit *)self)->weakrefs != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    emit_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
emit_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<%R in C>", ((Emit *)self)->slow);
}

/* A copy of a function is the function. */
static PyObject *
emit_copy(PyObject *self, PyObject *memo)
{
    return Py_NewRef(self);
}

static PyObject *
emit_of_slow(PyObject *self, void *name)
{
    PyObject *slow = ((Emit *)self)->slow;
    return slow == NULL ? PyUnicode_FromString("") : PyObject_GetAttrString(slow, name);
}

static PyMethodDef emit_methods[] = {
    {"__copy__", emit_copy, METH_NOARGS, NULL},
    {"__deepcopy__", emit_copy, METH_O, NULL},
    {NULL},
};

static PyGetSetDef emit_attributes[] = {
    {"__name__", emit_of_slow, NULL, NULL, "__name__"},
    {"__qualname__", emit_of_slow, NULL, NULL, "__qualname__"},
    {"__doc__", emit_of_slow, NULL, NULL, "__doc__"},
    {"__module__", emit_of_slow, NULL, NULL, "__module__"},
    {NULL},
};

static PyMemberDef emit_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Emit, vectorcall), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Emit, weakrefs), READONLY, NULL},
    {"__wrapped__", T_OBJECT_EX, offsetof(Emit, slow), READONLY, "where its signature stands"},
    {NULL},
};

static PyType_Slot emit_slots[] = {
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_repr, emit_repr},
    {Py_tp_traverse, emit_traverse},
    {Py_tp_clear, emit_clear},
    {Py_tp_dealloc, emit_dealloc},
    {Py_tp_methods, emit_methods},
    {Py_tp_getset, emit_attributes},
    {Py_tp_members, emit_members},
    {0, NULL},
};

static PyType_Spec emit_spec = {
    "grape._hot.Emit", sizeof(Emit), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION, emit_slots,
};

static PyObject *
new_emit(State *state, vectorcallfunc call, PyObject *tip, PyObject *slow, PyObject *inherit, PyObject *partitions,
         Py_ssize_t small, PyObject *key_name)
{
    if (!PyObject_TypeCheck(tip, state->tip_type) || !PyDict_Check(partitions)) {
        PyErr_SetString(PyExc_TypeError, "emits take a Tip, a function, and a dict");
        return NULL;
    }
    Emit *emit = (Emit *)state->emit_type->tp_alloc(state->emit_type, 0);
    if (emit == NULL) {
        return NULL;
    }
    emit->vectorcall = call;
    emit->tip = Py_NewRef(tip);
    emit->slow = Py_NewRef(slow);
    emit->inherit = Py_NewRef(inherit);
    emit->partitions = Py_NewRef(partitions);
    emit->key_name = Py_NewRef(key_name);
    emit->measure = Py_NewRef(state->texts[MEASURE]);
    emit->small = small;
    return (PyObject *)emit;
}

static PyObject *
make_emit(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = state_of(module);
    if (!check_count("make_emit", nargs, 5)) {
        return NULL;
    }
    Py_ssize_t small = PyLong_AsSsize_t(args[4]);
    if (small == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return new_emit(state, emit_call, args[0], args[1], args[2], args[3], small, state->texts[KEY]);
}

/* Whether all can be keys, which ``partitions`` finds out: 1, 0 if this is no tuple of texts, -1 with an error. */
static int
are_keys(PyObject *keys, PyObject *partitions, Py_ssize_t *size)
{
    if (!PyTuple_CheckExact(keys)) {
        return 0;
    }
    *size = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); i++) {
        PyObject *key = PyTuple_GET_ITEM(keys, i);
        if (!PyUnicode_CheckExact(key)) {
            return 0;
        }
        int is_known = PyDict_Contains(partitions, key);
        if (is_known < 0) {
            return -1;
        }
        if (!is_known) {
            PyObject *number = PyObject_GetItem(partitions, key);
            if (number == NULL) {
                return -1;
            }
            Py_DECREF(number);
        }
        *size += PyUnicode_GET_LENGTH(key);
    }
    return 1;
}

/* Both columns grow by as many as there are keys, or not at all: 1, -1 with an error. */
static int
append_keys(Tip *tip, PyObject *keys)
{
    Py_ssize_t begun = PyList_GET_SIZE(tip->data);
    if (PyList_SetSlice(tip->keys, begun, begun, keys)) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); i++) {
        if (PyList_Append(tip->data, Py_None)) {
            (void)PyList_SetSlice(tip->keys, begun, PyList_GET_SIZE(tip->keys), NULL);
            (void)PyList_SetSlice(tip->data, begun, PyList_GET_SIZE(tip->data), NULL);
            return -1;
        }
    }
    return 1;
}

/* The short way of keys alone: 1, 0 if it is not one, -1 with an error. */
static int
emit_keys_shortly(Emit *emit, PyObject *event, PyObject *keys)
{
    Tip *tip = (Tip *)emit->tip;
    if (event != tip->name || tip->data == NULL || tip->keys == NULL ||
        PyList_GET_SIZE(tip->keys) != PyList_GET_SIZE(tip->data)) {
        return 0;
    }
    /* A copy: finding out what an unknown key is may run Python, and with it other threads. */
    keys = PyList_CheckExact(keys) || PyTuple_CheckExact(keys) ? PySequence_Tuple(keys) : Py_NewRef(keys);
    if (keys == NULL) {
        return -1;
    }
    Py_ssize_t size;
    int usual = are_keys(keys, emit->partitions, &size);
    if (usual > 0) {
        usual = event != tip->name || PyList_GET_SIZE(tip->keys) != PyList_GET_SIZE(tip->data)
                    ? 0 /* somebody else has emitted meanwhile */
                    : append_keys(tip, keys);
    }
    Py_DECREF(keys);
    return usual > 0 ? count_emits(emit, size) : usual;
}

static PyObject *
emit_many_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Emit *emit = (Emit *)self;
    if (!is_alive(emit)) {
        return NULL;
    }
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (nargs == 1 && names != NULL && PyTuple_GET_SIZE(names) == 1 && PyTuple_GET_ITEM(names, 0) == emit->key_name) {
        int done = emit_keys_shortly(emit, args[0], args[1]);
        if (done < 0) {
            return NULL;
        }
        if (done) {
            Py_RETURN_NONE;
        }
    }
    return PyObject_Vectorcall(emit->slow, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
}

static PyObject *
make_emit_many(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = state_of(module);
    if (!check_count("make_emit_many", nargs, 3)) {
        return NULL;
    }
    return new_emit(state, emit_many_call, args[0], args[1], Py_None, args[2], 0, state->texts[KEYS]);
}

/* ---------------------------------------------------------------- where keys live */

/* A number as an index: the partition of a key; -1 with an error. */
static Py_ssize_t
partition_of(PyObject *partitions, PyObject *key)
{
    PyObject *number = PyDict_GetItemWithError(partitions, key);
    if (number == NULL) {
        if (PyErr_Occurred()) {
            return -1;
        }
        number = PyObject_GetItem(partitions, key); /* which finds out what it is */
        if (number == NULL) {
            return -1;
        }
    }
    else {
        Py_INCREF(number);
    }
    Py_ssize_t found = PyLong_AsSsize_t(number);
    Py_DECREF(number);
    if (found < 0 || found >= MOST_PARTITIONS) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "partition %zd", found);
        }
        return -1;
    }
    return found;
}

/* The group of a partition, which is made if need be: a borrowed tuple (number, keys, data), NULL with an error. */
static PyObject *
group_of(PyObject *groups, Py_ssize_t **places, Py_ssize_t *known, Py_ssize_t number, int has_data)
{
    if (number >= *known) {
        Py_ssize_t room = number + 64;
        Py_ssize_t *more = PyMem_Realloc(*places, room * sizeof(Py_ssize_t));
        if (more == NULL) {
            return PyErr_NoMemory();
        }
        for (Py_ssize_t i = *known; i < room; i++) {
            more[i] = -1;
        }
        *places = more;
        *known = room;
    }
    if ((*places)[number] < 0) {
        PyObject *group = has_data ? Py_BuildValue("n[][]", number) : Py_BuildValue("n[]O", number, Py_None);
        int failed = group == NULL || PyList_Append(groups, group);
        Py_XDECREF(group);
        if (failed) {
            return NULL;
        }
        (*places)[number] = PyList_GET_SIZE(groups) - 1;
    }
    return PyList_GET_ITEM(groups, (*places)[number]);
}

static PyObject *
scatter(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (!check_count("scatter", nargs, 4) || !check_list(args[0], "keys") ||
        (args[1] != Py_None && !check_list(args[1], "data"))) {
        return NULL;
    }
    PyObject *keys = args[0], *data = args[1], *partitions = args[2];
    Py_ssize_t own = PyLong_AsSsize_t(args[3]);
    if (own < 0 || own >= MOST_PARTITIONS || !PyDict_Check(partitions) ||
        (data != Py_None && PyList_GET_SIZE(data) != PyList_GET_SIZE(keys))) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "scatter takes as many data as keys, a dict and a partition");
        }
        return NULL;
    }
    Py_ssize_t *places = NULL, known = 0;
    PyObject *groups = PyList_New(0);
    int failed = groups == NULL;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(keys); i++) {
        PyObject *key = Py_NewRef(PyList_GET_ITEM(keys, i));
        Py_ssize_t number = key == Py_None ? own : partition_of(partitions, key);
        PyObject *group = number < 0 ? NULL : group_of(groups, &places, &known, number, data != Py_None);
        failed = group == NULL || PyList_Append(PyTuple_GET_ITEM(group, 1), key);
        Py_DECREF(key);
        if (!failed && data != Py_None) {
            if (i >= PyList_GET_SIZE(data)) {
                PyErr_SetString(PyExc_RuntimeError, "data became shorter");
                failed = 1;
            }
            else {
                failed = PyList_Append(PyTuple_GET_ITEM(group, 2), PyList_GET_ITEM(data, i));
            }
        }
    }
    PyMem_Free(places);
    if (failed) {
        Py_CLEAR(groups);
    }
    return groups;
}

/* ---------------------------------------------------------------- columns in msgpack */

#define LONGEST_KEY 4096

typedef struct {
    char *start;
    Py_ssize_t size, room;
} Buffer;

/* Room for so many bytes more: where they go, NULL with an error. */
static char *
more_room(Buffer *buffer, Py_ssize_t size)
{
    if (buffer->room - buffer->size < size) {
        if (size > PY_SSIZE_T_MAX / 4 - buffer->size) {
            return (char *)PyErr_NoMemory();
        }
        Py_ssize_t room = (buffer->size + size) * 2;
        char *start = PyMem_Realloc(buffer->start, room);
        if (start == NULL) {
            return (char *)PyErr_NoMemory();
        }
        buffer->start = start;
        buffer->room = room;
    }
    char *at = buffer->start + buffer->size;
    buffer->size += size;
    return at;
}

static char *
big_endian(char *at, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--) {
        *at++ = (char)(value >> (8 * i));
    }
    return at;
}

/* Text or bytes with their mark. */
static int
put_sized(Buffer *buffer, const char *data, Py_ssize_t size, int is_text)
{
    if ((uint64_t)size > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "over 4 GiB");
        return 0;
    }
    char *at = more_room(buffer, size + 5);
    if (at == NULL) {
        return 0;
    }
    char *begun = at;
    if (is_text && size < 32) {
        *at++ = (char)(0xA0 | size);
    }
    else if (size < 256) {
        *at++ = (char)(is_text ? 0xD9 : 0xC4);
        at = big_endian(at, size, 1);
    }
    else if (size < 65536) {
        *at++ = (char)(is_text ? 0xDA : 0xC5);
        at = big_endian(at, size, 2);
    }
    else {
        *at++ = (char)(is_text ? 0xDB : 0xC6);
        at = big_endian(at, size, 4);
    }
    memcpy(at, data, size);
    buffer->size += at + size - begun - (size + 5);
    return 1;
}

static int
put_marked(Buffer *buffer, unsigned char mark, uint64_t value, int bytes)
{
    char *at = more_room(buffer, 1 + bytes);
    if (at == NULL) {
        return 0;
    }
    *at++ = (char)mark;
    big_endian(at, value, bytes);
    return 1;
}

static int
put_int(Buffer *buffer, long long value)
{
    uint64_t bits = (uint64_t)value;
    if (value >= -32 && value < 128) {
        return put_marked(buffer, (unsigned char)value, 0, 0);
    }
    if (value > 0) {
        return value < 256            ? put_marked(buffer, 0xCC, bits, 1)
               : value < 65536        ? put_marked(buffer, 0xCD, bits, 2)
               : value <= UINT32_MAX  ? put_marked(buffer, 0xCE, bits, 4)
                                      : put_marked(buffer, 0xCF, bits, 8);
    }
    return value >= -128         ? put_marked(buffer, 0xD0, bits, 1)
           : value >= -32768     ? put_marked(buffer, 0xD1, bits, 2)
           : value >= INT32_MIN  ? put_marked(buffer, 0xD2, bits, 4)
                                 : put_marked(buffer, 0xD3, bits, 8);
}

/* The UTF-8 of a text: NULL without an error if it has none. */
static const char *
utf8_of(PyObject *text, Py_ssize_t *size)
{
    if (!READY(text)) {
        PyErr_Clear();
        return NULL;
    }
    if (PyUnicode_IS_ASCII(text)) {
        *size = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_1BYTE_DATA(text);
    }
    const char *found = PyUnicode_AsUTF8AndSize(text, size);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        PyErr_Clear();
    }
    return found;
}

/* A plain value of at most ``largest`` bytes: 1, 0 if it is none, -1 with an error. */
static int
put_value(Buffer *buffer, PyObject *value, Py_ssize_t largest)
{
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t size;
        const char *text = utf8_of(value, &size);
        if (text == NULL) {
            return PyErr_Occurred() ? -1 : 0;
        }
        return size > largest ? 0 : put_sized(buffer, text, size, 1) ? 1 : -1;
    }
    if (PyLong_CheckExact(value)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow ? 0 : put_int(buffer, number) ? 1 : -1;
    }
    if (value == Py_None || PyBool_Check(value)) {
        unsigned char mark = value == Py_None ? 0xC0 : value == Py_False ? 0xC2 : 0xC3;
        return put_marked(buffer, mark, 0, 0) ? 1 : -1;
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        uint64_t bits;
        memcpy(&bits, &number, sizeof(bits));
        return put_marked(buffer, 0xCB, bits, 8) ? 1 : -1;
    }
    if (PyBytes_CheckExact(value)) {
        Py_ssize_t size = PyBytes_GET_SIZE(value);
        return size > largest ? 0 : put_sized(buffer, PyBytes_AS_STRING(value), size, 0) ? 1 : -1;
    }
    return 0;
}

/* A column as a msgpack array: a new reference. */
static PyObject *
column_of(const Buffer *buffer, Py_ssize_t count)
{
    char mark[5], *end = mark;
    if (count < 16) {
        *end++ = (char)(0x90 | count);
    }
    else if (count < 65536) {
        *end++ = (char)0xDC;
        end = big_endian(end, count, 2);
    }
    else {
        *end++ = (char)0xDD;
        end = big_endian(end, count, 4);
    }
    PyObject *column = PyBytes_FromStringAndSize(NULL, (end - mark) + buffer->size);
    if (column != NULL) {
        memcpy(PyBytes_AS_STRING(column), mark, end - mark);
        if (buffer->size) {
            memcpy(PyBytes_AS_STRING(column) + (end - mark), buffer->start, buffer->size);
        }
    }
    return column;
}

/* Keys and values of one partition that are not handed over yet. */
typedef struct {
    Buffer keys, values;
    Py_ssize_t count;
} Lane;

static void
free_lanes(Lane *lanes, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; lanes != NULL && i < count; i++) {
        PyMem_Free(lanes[i].keys.start);
        PyMem_Free(lanes[i].values.start);
    }
    PyMem_Free(lanes);
}

/* Append (number, count, keys, values) to ``out``, without keys (count, values), and empty the lane. */
static int
flush_lane(Lane *lane, Py_ssize_t number, PyObject *out)
{
    PyObject *values = column_of(&lane->values, lane->count), *keys = NULL, *item = NULL;
    if (number < 0) {
        item = values == NULL ? NULL : Py_BuildValue("nO", lane->count, values);
    }
    else if (values != NULL && (keys = column_of(&lane->keys, lane->count)) != NULL) {
        item = Py_BuildValue("nnOO", number, lane->count, keys, values);
    }
    Py_XDECREF(keys);
    Py_XDECREF(values);
    int failed = item == NULL || PyList_Append(out, item);
    Py_XDECREF(item);
    lane->keys.size = lane->values.size = lane->count = 0;
    return !failed;
}

static void
shift(Buffer *buffer, Py_ssize_t by)
{
    buffer->size -= by;
    if (by) {
        memmove(buffer->start, buffer->start + by, buffer->size);
    }
}

/* Bytes of an array's mark. */
static Py_ssize_t
mark_size(Py_ssize_t count)
{
    return count < 16 ? 1 : count < 65536 ? 3 : 5;
}

/* One more was put into a lane in which there were so many bytes of keys and values before. If that is too much by now,
   what was there is handed over. */
static int
count_in(Lane *lane, Py_ssize_t key_size, Py_ssize_t value_size, Py_ssize_t most, Py_ssize_t number, PyObject *out)
{
    Py_ssize_t marks = mark_size(lane->count + 1) * (number < 0 ? 1 : 2);
    if (lane->count && lane->keys.size + lane->values.size + marks > most) {
        Py_ssize_t keys = lane->keys.size, values = lane->values.size;
        lane->keys.size = key_size;
        lane->values.size = value_size;
        if (!flush_lane(lane, number, out)) {
            return 0;
        }
        lane->keys.size = keys;
        lane->values.size = values;
        shift(&lane->keys, key_size);
        shift(&lane->values, value_size);
    }
    lane->count++;
    return 1;
}

typedef struct {
    PyObject_HEAD
    Py_ssize_t partitions;
    const uint32_t *crcs;
} Sorter;

/* 1, 0 if it is no pair of a key and a plain value, -1 with an error. */
static int
sort_pair(Sorter *sorter, Lane *lanes, PyObject *pair, Py_ssize_t largest, Py_ssize_t most, PyObject *out)
{
    if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyUnicode_CheckExact(PyTuple_GET_ITEM(pair, 0))) {
        return 0;
    }
    Py_ssize_t size;
    const char *key = utf8_of(PyTuple_GET_ITEM(pair, 0), &size);
    if (key == NULL || size < 1 || size > LONGEST_KEY) {
        return PyErr_Occurred() ? -1 : 0;
    }
    uint32_t crc = 0xFFFFFFFF;
    for (Py_ssize_t i = 0; i < size; i++) {
        crc = sorter->crcs[(crc ^ (unsigned char)key[i]) & 0xFF] ^ (crc >> 8);
    }
    Py_ssize_t number = (Py_ssize_t)((crc ^ 0xFFFFFFFF) % (uint32_t)sorter->partitions);
    Lane *lane = &lanes[number];
    Py_ssize_t key_size = lane->keys.size, value_size = lane->values.size;
    int put = put_value(&lane->values, PyTuple_GET_ITEM(pair, 1), largest);
    if (put <= 0 || !put_sized(&lane->keys, key, size, 1)) {
        return put <= 0 ? put : -1;
    }
    return count_in(lane, key_size, value_size, most, number, out) ? 1 : -1;
}

static PyObject *
sorter_sort(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Sorter *sorter = (Sorter *)self;
    if (!check_count("sort", nargs, 3) || !check_list(args[0], "pairs")) {
        return NULL;
    }
    PyObject *pairs = args[0];
    Py_ssize_t largest = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Lane *lanes = PyMem_Calloc(sorter->partitions, sizeof(Lane));
    PyObject *out = lanes == NULL ? PyErr_NoMemory() : PyList_New(0);
    int put = out == NULL ? -1 : 1;
    for (Py_ssize_t i = 0; put > 0 && i < PyList_GET_SIZE(pairs); i++) {
        put = sort_pair(sorter, lanes, PyList_GET_ITEM(pairs, i), largest, most, out);
    }
    for (Py_ssize_t i = 0; put > 0 && i < sorter->partitions; i++) {
        put = !lanes[i].count || flush_lane(&lanes[i], i, out) ? 1 : -1;
    }
    free_lanes(lanes, sorter->partitions);
    if (put <= 0) {
        Py_XDECREF(out);
        return put < 0 ? NULL : Py_NewRef(Py_None);
    }
    return out;
}

static PyObject *
sorter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t partitions;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Sorter takes a number alone");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "n", &partitions)) {
        return NULL;
    }
    if (partitions < 1 || partitions > MOST_PARTITIONS) {
        PyErr_Format(PyExc_ValueError, "%zd partitions", partitions);
        return NULL;
    }
    PyObject *module = PyType_GetModuleByDef(type, &definition);
    Sorter *sorter = module == NULL ? NULL : (Sorter *)type->tp_alloc(type, 0);
    if (sorter != NULL) {
        sorter->partitions = partitions;
        sorter->crcs = state_of(module)->crcs; /* lives as long as the type, which the object holds */
    }
    return (PyObject *)sorter;
}

static void
sorter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef sorter_methods[] = {
    {"sort", (PyCFunction)(void (*)(void))sorter_sort, METH_FASTCALL, "See grape.hot.pure.Sorter."},
    {NULL},
};

static PyType_Slot sorter_slots[] = {
    {Py_tp_doc, "Pairs by the partition of their keys: see grape.hot.pure.Sorter."},
    {Py_tp_new, sorter_new},
    {Py_tp_dealloc, sorter_dealloc},
    {Py_tp_methods, sorter_methods},
    {0, NULL},
};

static PyType_Spec sorter_spec = {"grape._hot.Sorter", sizeof(Sorter), 0, Py_TPFLAGS_DEFAULT, sorter_slots};

static PyObject *
slice_values(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (!check_count("slice_values", nargs, 4) || !check_list(args[0], "values")) {
        return NULL;
    }
    PyObject *values = args[0];
    Py_ssize_t largest = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
    Py_ssize_t events = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Lane lane = {{NULL, 0, 0}, {NULL, 0, 0}, 0};
    PyObject *out = PyList_New(0);
    int put = out == NULL ? -1 : 1;
    for (Py_ssize_t i = 0; put > 0 && i < PyList_GET_SIZE(values); i++) {
        if (lane.count >= events && !flush_lane(&lane, -1, out)) {
            put = -1;
            break;
        }
        Py_ssize_t size = lane.values.size;
        put = put_value(&lane.values, PyList_GET_ITEM(values, i), largest);
        if (put > 0 && !count_in(&lane, 0, size, most, -1, out)) {
            put = -1;
        }
    }
    if (put > 0 && lane.count && !flush_lane(&lane, -1, out)) {
        put = -1;
    }
    PyMem_Free(lane.values.start);
    if (put <= 0) {
        Py_XDECREF(out);
        return put < 0 ? NULL : Py_NewRef(Py_None);
    }
    return out;
}

/* ---------------------------------------------------------------- how deep a value is nested */

/* The number in so many bytes; 0 if they are cut off. */
static uint64_t
number_at(const unsigned char *at, const unsigned char *end, int bytes)
{
    uint64_t number = 0;
    for (int i = 0; end - at >= bytes && i < bytes; i++) {
        number = number << 8 | at[i];
    }
    return number;
}

/* Bytes after the mark of what is no container, that of its length among them. */
static uint64_t
size_after(unsigned char mark, const unsigned char *at, const unsigned char *end)
{
    static const unsigned char fixed[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17}; /* from 0xCA on */
    if (mark >= 0xA0 && mark <= 0xBF) {
        return mark & 0x1F;
    }
    if (mark >= 0xCA && mark <= 0xD8) {
        return fixed[mark - 0xCA];
    }
    if (mark >= 0xC4 && mark <= 0xC9) {
        int head = 1 << (mark - 0xC4) % 3;
        return head + (mark >= 0xC7) + number_at(at, end, head);
    }
    if (mark >= 0xD9 && mark <= 0xDB) {
        int head = 1 << (mark - 0xD9);
        return head + number_at(at, end, head);
    }
    return 0;
}

static PyObject *
is_deeper(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (!check_count("is_deeper", nargs, 2)) {
        return NULL;
    }
    if (!PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "packed has to be bytes");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(args[1]);
    if (most == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyBytes_GET_SIZE(args[0]) <= most) {
        Py_RETURN_FALSE;
    }
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    const unsigned char *end = at + PyBytes_GET_SIZE(args[0]);
    uint64_t *around = PyMem_New(uint64_t, most > 0 ? most : 1); /* values still to come in those around this one */
    if (around == NULL) {
        return PyErr_NoMemory();
    }
    uint64_t left = 1;
    Py_ssize_t depth = 0;
    int found = 0;
    while (at < end) {
        unsigned char mark = *at++;
        uint64_t size;
        left--;
        if ((mark >= 0x80 && mark <= 0x9F) || (mark >= 0xDC && mark <= 0xDF)) {
            if (depth >= most) {
                found = 1;
                break;
            }
            around[depth++] = left;
            size = mark <= 0x9F ? 0 : mark & 1 ? 4 : 2;
            left = mark <= 0x9F ? mark & 0x0F : number_at(at, end, (int)size);
            if (mark <= 0x8F || mark >= 0xDE) { /* a map */
                left *= 2;
            }
        }
        else {
            size = size_after(mark, at, end);
        }
        if (size > (uint64_t)(end - at)) {
            break;
        }
        at += size;
        while (!left && depth) {
            left = around[--depth];
        }
        if (!left) {
            break;
        }
    }
    PyMem_Free(around);
    return PyBool_FromLong(found);
}

/* ---------------------------------------------------------------- the module */

static PyMethodDef functions[] = {
    {"map_texts", (PyCFunction)(void (*)(void))map_texts, METH_FASTCALL, "See grape.hot.pure."},
    {"run_events", (PyCFunction)(void (*)(void))run_events, METH_FASTCALL, "See grape.hot.pure."},
    {"count_events", (PyCFunction)(void (*)(void))count_events, METH_FASTCALL, "See grape.hot.pure."},
    {"make_emit_many", (PyCFunction)(void (*)(void))make_emit_many, METH_FASTCALL, "See grape.hot.pure."},
    {"scatter", (PyCFunction)(void (*)(void))scatter, METH_FASTCALL, "See grape.hot.pure."},
    {"slice_values", (PyCFunction)(void (*)(void))slice_values, METH_FASTCALL, "See grape.hot.pure."},
    {"is_deeper", (PyCFunction)(void (*)(void))is_deeper, METH_FASTCALL, "See grape.hot.pure."},
    {"make_emit", (PyCFunction)(void (*)(void))make_emit, METH_FASTCALL, "See grape.hot.pure."},
    {NULL},
};

static int
module_exec(PyObject *module)
{
    State *state = state_of(module);
    for (int i = 0; i < TEXTS; i++) {
        state->texts[i] = PyUnicode_InternFromString(texts[i]);
        if (state->texts[i] == NULL) {
            return -1;
        }
    }
    state->tip_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tip_spec, NULL);
    if (state->tip_type == NULL || PyModule_AddType(module, state->tip_type)) {
        return -1;
    }
    for (uint32_t i = 0; i < 256; i++) { /* of the polynomial that zlib uses */
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc & 1 ? 0xEDB88320 ^ (crc >> 1) : crc >> 1;
        }
        state->crcs[i] = crc;
    }
    state->sorter_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &sorter_spec, NULL);
    if (state->sorter_type == NULL || PyModule_AddType(module, state->sorter_type)) {
        return -1;
    }
    state->emit_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &emit_spec, NULL);
    return state->emit_type == NULL ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = state_of(module);
    Py_VISIT(state->tip_type);
    Py_VISIT(state->emit_type);
    Py_VISIT(state->sorter_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = state_of(module);
    Py_CLEAR(state->tip_type);
    Py_CLEAR(state->emit_type);
    Py_CLEAR(state->sorter_type);
    for (int i = 0; i < TEXTS; i++) {
        Py_CLEAR(state->texts[i]);
    }
    return 0;
}

static void
module_free(void *module)
{
    (void)module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "grape._hot",
    .m_doc = "The loops of grape.hot.pure in C.",
    .m_size = sizeof(State),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__hot(void)
{
    return PyModuleDef_Init(&definition);
}
