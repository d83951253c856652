package Grape::Storage;

# Every question goes to the adapter, which has the rules, and answers at once.

use strict;
use warnings;
use Digest::SHA ();
use Grape::Bytes ();
use Grape::Failure ();

our $VERSION = '0.1.0';

my $CHUNK  = 1 << 20;
my $INLINE = 64 << 10;    # bytes that a row holds, which has a checksum of its own
my $uploads = 0;

sub new {
    my ($class, $event, $namespace) = @_;
    return bless { event => $event, namespace => $namespace }, $class;
}

sub namespace {
    my ($self, $name) = @_;
    return __PACKAGE__->new($self->{event}, defined $name ? "$name" : q{});
}

sub put {
    my ($self, $key, $data, %about) = @_;
    if (exists $about{time} && defined $about{time}) {
        _fail('bad-argument', 'time => SECONDS since 1970') if $about{time} !~ /\A[0-9]+(?:[.][0-9]+)?\z/x || !$about{time};
        $about{time} = int($about{time} * 1e6);
    }
    delete $about{$_} for grep { !defined $about{$_} } keys %about;
    $about{ttl} = 0 + $about{ttl} if exists $about{ttl} && $about{ttl} =~ /\A-?[0-9.]+\z/x;
    my $next = _chunks($data);
    my $upload = ++$uploads;
    my $ahead = $next->();
    my $is_first = 1;
    my $is_whole = eval {
        do {
            my $chunk = $ahead;
            $ahead = defined $chunk ? $next->() : undef;
            my $bytes = defined $chunk ? $chunk : q{};
            $self->_ask(what => 'put', key => $key, data => $bytes, upload => $upload, last => !defined $ahead, about => $is_first ? \%about : {});
            $is_first = 0;
        } while (defined $ahead);
        1;
    };
    return if $is_whole;
    my $error = $@;
    $self->_ask(what => 'drop', key => q{}, upload => $upload) if !$is_first;
    die $error;    ## no critic (RequireCarping)
}

sub get {
    my ($self, $key, $start, $end) = @_;
    my $next = $self->chunks($key, $start, $end) or return;
    my $bytes = q{};
    while (defined(my $chunk = $next->())) { $bytes .= $chunk }
    return $bytes;
}

# A sub that gives the next chunk, undef at the end; undef: there is no such object.
sub chunks {
    my ($self, $key, $start, $end) = @_;
    $start = 0 if !defined $start;
    my $checksum = q{};
    my $fetch = sub {
        my $got = $self->_ask(what => 'get', key => $key, start => $start, end => $end, position => $checksum);
        return if !$got->{found};
        $checksum = $got->{about}{checksum};
        $start += length $got->{data};
        return $got;
    };
    my $from = $start;
    my $got  = $fetch->() or return;
    my $size = $got->{about}{size};
    my $last = defined $end && $end < $size ? $end : $size;
    my $sum  = $from == 0 && $last == $size && $size > $INLINE && $checksum =~ /\Asha256:/x ? Digest::SHA->new(256) : undef;
    my $left = $last - $from;
    my $what = sprintf q{object '%s'}, substr $key, 0, 200;
    return sub {
        my $now = $got or return;
        $got = undef;
        if (!length $now->{data}) {
            _fail('handler', "$what is shorter than it says") if $left > 0;
            return;
        }
        $left -= length $now->{data};
        $sum->add($now->{data}) if $sum;
        if ($now->{more}) {
            $got = $fetch->() || _fail('handler', "$what was written by somebody else while it was read; try again");
        }
        elsif ($sum && 'sha256:' . $sum->hexdigest ne $checksum) {    # of one that is read whole
            _fail('handler', "corrupt: $what is not what was written: its checksum is another one");
        }
        return $now->{data};
    };
}

sub stat {    ## no critic (ProhibitBuiltinHomonyms): that is what it is called everywhere
    my ($self, $key) = @_;
    my $got = $self->_ask(what => 'stat', key => $key);
    return $got->{found} ? _known($got->{about}) : undef;
}

sub list {
    my ($self, $prefix, %options) = @_;
    my @found;
    $self->each($prefix, sub { push @found, $_[0] }, %options);
    return @found;
}

sub each {    ## no critic (ProhibitBuiltinHomonyms)
    my ($self, $prefix, $call, %options) = @_;
    my $tags = delete $options{tags} || [];
    _fail('usage', 'list(PREFIX, tags => [TAG, ...])') if %options;
    my $position = q{};
    do {
        my $got = $self->_ask(what => 'list', key => defined $prefix ? $prefix : q{}, about => { tags => $tags }, position => $position);
        $call->(_known($_)) for @{ $got->{items} };
        $position = $got->{position};
    } while ($position ne q{});
    return;
}

sub remove {
    my ($self, $key) = @_;
    $self->_ask(what => 'remove', key => $key);
    return;
}

sub _ask {
    my ($self, %what) = @_;
    return $self->{event}->ask_for_object(namespace => $self->{namespace}, %what);
}

sub _known {
    my ($about) = @_;
    return { %{$about}, time => $about->{time} / 1e6, expires => $about->{expires} ? $about->{expires} / 1e6 : undef };
}

# A sub that gives what an object is made of, chunk by chunk; undef at the end.
sub _chunks {
    my ($data) = @_;
    _fail('bad-argument', 'an object is made of bytes, text, a file handle, or a sub that gives chunks') if !defined $data;
    if (ref $data eq 'CODE') {
        my $is_over;
        return sub {
            my $bytes = q{};
            while (!$is_over && length $bytes < $CHUNK) {
                my $chunk = $data->();
                $is_over = !defined $chunk || !length $chunk;
                $bytes .= _bytes($chunk) if !$is_over;
            }
            return length $bytes ? $bytes : undef;
        };
    }
    if (ref $data eq 'GLOB' || (ref $data && eval { $data->can('read') })) {
        return sub {
            my $chunk;
            my $got = read $data, $chunk, $CHUNK;
            _fail('handler', "a file that is put cannot be read: $!") if !defined $got;
            return $got ? _bytes($chunk) : undef;
        };
    }
    _fail('bad-argument', 'an object is made of bytes, text, a file handle, or a sub that gives chunks') if ref $data && ref $data ne 'Grape::Bytes';
    my $whole = ref $data ? $data->value : _bytes($data);
    my $at = 0;
    return sub {
        return if $at >= length $whole;
        my $chunk = substr $whole, $at, $CHUNK;
        $at += $CHUNK;
        return $chunk;
    };
}

# Text is written as UTF-8.
sub _bytes {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    return $text;
}

sub _fail {
    my ($kind, $text) = @_;
    die Grape::Failure->new(kind => $kind, text => $text);
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Storage - objects, in a handler

=head1 SYNOPSIS

    my $storage = $event->storage;
    $storage->put('notes/' . $event->key, $text, content_type => 'text/plain', tags => ['note']);
    my $bytes = $storage->get('notes/ann');

=head1 DESCRIPTION

Objects are bytes under keys, in namespaces. What a handler writes counts with all else that its event does, once, or not
at all if it dies. Later events of its partition, so of its key, see it at once, others when it is committed. What cannot
be (a key, a namespace that is not granted) dies with a L<Grape::Failure>.

=head1 METHODS

=head2 put(KEY, DATA, content_type => .., tags => [..], user => {..}, time => SECONDS, ttl => SECONDS)

DATA is bytes, text (which is written as UTF-8), a file handle, or a sub that gives the next chunk and undef at the end.
Over 64 KiB go to a file at once, chunk by chunk, so that memory stays flat.

=head2 get(KEY, START, END)

Its bytes, from START up to END (not included); undef if there is none. Text has to be decoded.

=head2 chunks(KEY, START, END)

A sub that gives the next chunk of up to 1 MiB, and undef at the end; undef if there is no such object.

=head2 stat(KEY)

A reference to a hash of C<key>, C<size>, C<version>, C<checksum>, C<time>, C<content_type>, C<tags>, C<user> and
C<expires> (undef: never); undef if there is none.

=head2 list(PREFIX, tags => [..])

What C<stat> says of each one that is committed, in the order of keys.

=head2 each(PREFIX, CALL, tags => [..])

The same, one by one, for many.

=head2 remove(KEY)

There is no such object any more.

=head2 namespace(NAME)

The objects of another namespace, if grape.toml grants it.

=cut
