package Grape::Event;

use strict;
use warnings;
no warnings 'recursion';    ## no critic (ProhibitNoWarnings): data may be nested
use Scalar::Util qw(blessed looks_like_number);
use Grape::Failure ();
use Grape::Event::Watched ();
use Grape::MsgPack ();
use Grape::Worker::Output ();

our $VERSION = '0.1.0';

my ($NAME, $KEY, $DATA, $INDEX, $RUN, $STATE) = (0 .. 5);    # Grape::Worker makes them
my %LEVELS = map { $_ => 1 } qw(debug info warning error critical);
my $MAX_KEY = 4_096;
my $MAX_DELAY = 4e12;    # seconds; 2 ** 62 microseconds are a little more
my $SHORT = 1_000;       # such a text is encoded when the run is handed in, if it is still there then

sub name { return $_[0][$NAME] }
sub key { return $_[0][$KEY] }
sub data { return $_[0][$DATA] }
sub attempt { my ($self) = @_; return ($self->[$RUN] || _over())->{attempt} }
sub created { my ($self) = @_; return ($self->[$RUN] || _over())->{created} / 1e6 }

sub id {
    my ($self) = @_;
    my $run = $self->[$RUN] || _over();
    return $run->{ids} ? $run->{ids}[ $self->[$INDEX] ] : $run->{prefix} . ($run->{first} + $self->[$INDEX]);
}

sub state {    ## no critic (ProhibitBuiltinHomonyms): that is what it is called everywhere
    my ($self) = @_;
    return $self->[$STATE] if $self->[$STATE];
    my $key = $self->[$KEY];
    _fail('no-key', "the event '$self->[$NAME]' has no key, so there is no state for it") if !defined $key;
    my $run = $self->[$RUN] || _over();
    my %copy = %{ $run->{made}{records}{$key} || {} };
    for my $value (values %copy) {
        $value = _copy($value) if ref $value;    # what the handler changes in place must not be what is stored
    }
    return $self->[$STATE] = \%copy if !$run->{ttl};
    tie my %watched, 'Grape::Event::Watched', \%copy, $run->{ttl};    ## no critic (ProhibitTies): an equal value prolongs too
    return $self->[$STATE] = \%watched;
}

sub emit {
    my ($self, $name, $data, %options) = @_;
    my $run = $self->[$RUN] || _over();
    my $made = $run->{made};
    $name = _known($name, $run->{worker}{known}) if !defined $name || !$run->{worker}{known}{$name};
    my $chosen = %options ? _options(%options) : undef;
    my $packed = $self->_packed($data);
    push @{ $made->{origins} }, $self->[$INDEX];
    push @{ $made->{names} }, $name;
    my $count = push @{ $made->{data} }, $packed;
    if ($chosen) {
        $made->{keys}[$count - 1] = $chosen->{key} if exists $chosen->{key};
        $made->{delays}[$count - 1] = $chosen->{delay} if exists $chosen->{delay};
    }
    return;
}

sub reply {
    my ($self, $data, %options) = @_;
    my $made = ($self->[$RUN] || _over())->{made};
    my $is_final = exists $options{final} ? delete $options{final} : 1;
    _fail('usage', 'reply(DATA, final => 0)') if %options;
    my $packed = $self->_packed($data);
    push @{ $made->{answering} }, $self->[$INDEX];
    push @{ $made->{replies} }, $packed . ($is_final ? "\xc3" : "\xc2");
    return;
}

sub progress {
    my ($self) = @_;
    ($self->[$RUN] || _over())->{worker}->beat;
    return;
}

sub log {    ## no critic (ProhibitBuiltinHomonyms): a logarithm it is not
    my ($self, $level, $text) = @_;
    my $worker = ($self->[$RUN] || _over())->{worker};
    _fail('usage', 'log(LEVEL, TEXT): a level is one of ' . join ', ', sort keys %LEVELS) if !$LEVELS{$level};
    $text = defined $text ? "$text" : q{};
    $text =~ s/\r?\n/ /gx;
    my ($node, $said) = map { Grape::Worker::Output::as_utf8($_) } $worker->{node}, $text;
    local ($,, $\);    # those of the script are for what the script prints
    print { $worker->{log} } "\x1e$level\x1e$node\x1e$said\n";
    return;
}

# ------------------------------------------------------------------------------------------------------ of the worker

# The handler has returned: is its state one that can be stored? What has changed is found out when it is handed in.
sub finish {
    my ($self, $declared) = @_;
    my ($made, $key, $new) = ($self->[$RUN]{made}, $self->[$KEY], $self->[$STATE]);
    $self->[$STATE] = undef;
    my $watched = tied %{$new};
    $new = { %{$new} } if $watched || Internals::SvREFCNT(%{$new}) > 1;    # whoever holds on to it must not change what is stored
    for my $name (keys %{$new}) {
        _check_declared($name, $declared, $made->{records}{$key}) if !$declared->{$name};
        my $value = $new->{$name};    # a copy: a number that was looked at as a text would travel as one
        if (ref $value || (defined $value && length $value > $SHORT)) {
            $new->{$name} = bless \$self->_packed($new->{$name}), 'Grape::Event::Packed';
        }
    }
    $made->{assigned}{$key}{$_} = 1 for $watched ? $watched->assigned : ();
    $made->{touched}{$key} ||= $made->{records}{$key} || {};
    $made->{records}{$key} = $new;
    return;
}

sub _copy {
    my ($value) = @_;
    my $kind = ref $value;
    return { map { $_ => ref $value->{$_} ? _copy($value->{$_}) : $value->{$_} } keys %{$value} } if $kind eq 'HASH';
    return [map { ref $_ ? _copy($_) : $_ } @{$value}] if $kind eq 'ARRAY';
    return Grape::MsgPack::decode(${$value}) if $kind eq 'Grape::Event::Packed';
    return $value;
}

sub _fail {
    my ($kind, $text) = @_;
    die Grape::Failure->new(kind => $kind, text => $text);
}

sub _over { return _fail('event-over', 'an event is over when its handler returns: it cannot be used later') }

sub _known {
    my ($name, $known) = @_;
    my $text = defined $name ? "$name" : q{};
    utf8::decode($text) if !utf8::is_utf8($text);
    return $text if $known->{$text};
    my ($near) = grep { $text ne q{} && (lc $_ eq lc $text || index($_, $text) >= 0 || index($text, $_) >= 0) } sort keys %{$known};
    my $hint = defined $near ? "did you mean '$near'?" : 'known are ' . join ', ', map { "'$_'" } sort keys %{$known};
    return _fail('unknown-event', "it emits '$text', neither a slot nor an output; $hint");
}

# The options of an emit, checked.
sub _options {
    my %given = @_;
    my %chosen;
    if (exists $given{key}) {
        my $key = delete $given{key};
        $chosen{key} = defined $key ? _key("$key") : Data::MessagePack::false();
    }
    my $delay = delete $given{delay};
    if (defined $delay) {
        my $copy = $delay;
        _fail('usage', "delay => $copy: seconds, 0 or more") if !looks_like_number($copy) || !($copy >= 0 && $copy <= $MAX_DELAY);
        $chosen{delay} = int($delay * 1e6);
    }
    _fail('usage', 'emit(NAME, DATA, key => KEY, delay => SECONDS), not ' . join ', ', sort keys %given) if %given;
    return \%chosen;
}

sub _key {
    my ($key) = @_;
    my $bytes = $key;
    utf8::encode($bytes) if utf8::is_utf8($bytes);
    my $size = length $bytes;
    if (!$size || $size > $MAX_KEY || !Grape::MsgPack::is_text($key)) {
        _fail('bad-key', "a key is text of 1 to $MAX_KEY bytes of UTF-8; this one has $size");
    }
    return $key;
}

sub _packed {    ## no critic (RequireArgUnpacking): see Grape::MsgPack::encode
    my $packed = Grape::MsgPack::encode($_[1]);
    my $made = $_[0][$RUN]{made};
    my $size = length $packed;
    _fail('too-large', "a value of $size bytes is over max-event ($made->{max_event})") if $size > $made->{max_event};
    $made->{size} += $size;
    return $packed;
}

sub _check_declared {
    my ($name, $declared, $stored) = @_;
    return if $stored && exists $stored->{$name};    # an earlier version of the node had it
    my $known = join(', ', sort keys %{$declared}) || 'none';
    return _fail('bad-state', "the node has no state '$name'; declared are: $known");
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Event - an event, while its handler runs

=head1 SYNOPSIS

    $worker->slot(word => { node => 'Count', states => ['count'], emits => ['total'] }, sub {
        my ($event) = @_;
        my $count = ++$event->state->{count};
        $event->emit(total => { word => $event->key, count => $count });
    });

=head1 DESCRIPTION

A handler gets its event as the only argument. What it emits, replies and stores takes effect when it has returned, as a
whole. If it dies, nothing has happened, and the event is tried again. What it returns does not matter.

An event is over when its handler returns. C<name>, C<key> and C<data> can still be read then; anything else dies.

=head1 METHODS

=head2 name

Of the event: what its slot listens to.

=head2 key

Text, or undef.

=head2 data

What was emitted with it.

=head2 id

The same at every attempt: make effects outside of Grape idempotent by it.

=head2 attempt

From 1.

=head2 created

Seconds since 1970, with a fraction.

=head2 state

A reference to the hash of the node's states, of this event's key. Read it, assign to it, C<delete> from it; a list or
hash in it may be changed in place. What has changed is stored when the handler has returned. A name that was not declared
fails the event, and so does state in an event without a key.

With C<ttl> each assignment begins the time anew, also one of the same value, and so does a change in place.

=head2 emit(NAME, DATA, key => KEY, delay => SECONDS)

Emits an event. NAME is one that a slot of the app listens to, or one of its outputs. Without C<key> the event has the key
of the one that caused it; C<< key => undef >> is none. C<delay> may have a fraction.

=head2 reply(DATA, final => BOOLEAN)

Answers the call that the event comes from. C<< final => 0 >> says that more follows.

=head2 progress

The handler takes long, but it is alive: its C<timeout> begins anew.

=head2 log(LEVEL, TEXT)

A line for the log. Levels are debug, info, warning, error and critical.

=head1 FAILURES

Misuse fails the event, with a L<Grape::Failure> of these kinds: C<unknown-event>, C<no-key>, C<bad-key>, C<bad-value>,
C<bad-state>, C<too-large>, C<event-over>, C<usage>.

=cut
