package Grape::Event;

use strict;
use warnings;
no warnings 'recursion';    ## no critic (ProhibitNoWarnings): data may be nested
use Digest::SHA ();
use Scalar::Util qw(blessed looks_like_number);
use Grape::Bytes ();
use Grape::CallFailed ();
use Grape::Failure ();
use Grape::Event::Watched ();
use Grape::MsgPack ();
use Grape::NoAnswer ();
use Grape::Storage ();
use Grape::Suspended ();
use Grape::Worker::Output ();

our $VERSION = '0.1.0';

my ($NAME, $KEY, $DATA, $INDEX, $RUN, $STATE) = (0 .. 5);    # Grape::Worker makes them
my @LEVELS = qw(debug info warning error critical);
my %LEVELS = map { $LEVELS[$_] => $_ } 0 .. $#LEVELS;
my ($MAX_FIELDS, $MAX_FIELD_NAME, $MAX_FIELD, $MAX_FIELDS_TEXT) = (32, 64, 1_000, 6 << 10);
my ($MAX_KEY, $MAX_TIMER, $MAX_NAME) = (4_096, 255, 255);
my ($MAX_CALLS, $MAX_WAIT) = (1_000, 1 << 61);
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
    $name = _known($name, $run->{worker}) if !defined $name || !$run->{worker}{known}{$name};
    my $chosen = %options ? _options($self->[$KEY], %options) : undef;
    my $packed = $self->_packed($data);
    push @{ $made->{origins} }, $self->[$INDEX];
    push @{ $made->{names} }, $name;
    my $count = push @{ $made->{data} }, $packed;
    if ($chosen) {
        $made->{keys}[$count - 1] = $chosen->{key} if exists $chosen->{key};
        $made->{delays}[$count - 1] = $chosen->{delay} if exists $chosen->{delay};
        $made->{timers}[$count - 1] = $chosen->{timer} if exists $chosen->{timer};
    }
    return;
}

sub cancel_timer {
    my ($self, $timer) = @_;
    my $made = ($self->[$RUN] || _over())->{made};
    $timer = _timer($timer, $self->[$KEY]);
    push @{ $made->{origins} }, $self->[$INDEX];
    push @{ $made->{names} }, q{};
    my $count = push @{ $made->{data} }, "\xc0";
    $made->{timers}[$count - 1] = $timer;
    return;
}

# The first time the handler is left here; with the answer it runs once more from its beginning, and this returns it. Calls
# are told apart by their order.
sub call {
    my ($self, $name, $data, %options) = @_;
    my $run = $self->[$RUN] || _over();
    my $worker = $run->{worker};
    $name = _known($name, $worker, 'calls') if !defined $name || !$worker->{known}{$name};
    _fail('unknown-event', "it calls '$name', which is an output: nothing answers there") if $worker->{outputs}{$name};
    my ($key, $wait) = _asking(%options);
    my $packed = $self->_packed($data);
    my $digest = substr Digest::SHA::sha256(Grape::MsgPack::encode([$name, $key]) . Grape::MsgPack::encode_in_order($data)), 0, 8;
    die $run->{suspended} if $run->{suspended};    # it has caught that
    my $ordinal = $run->{called}++;
    return _answer($run, $name, $ordinal, $digest) if $ordinal < @{ $run->{answers} };
    _fail('handler', "it has made $MAX_CALLS calls for one event") if $ordinal >= $MAX_CALLS;
    $run->{suspended} = Grape::Suspended->new(event => $name, digest => $digest, timeout => $wait, data => $packed, key => $key);
    die $run->{suspended};
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

sub storage { my ($self) = @_; return Grape::Storage->new($self, undef) }

# Of Grape::Storage: a question, and its answer.
sub ask_for_object {
    my ($self, %want) = @_;
    my $run = $self->[$RUN] || _over();
    my $key = $want{key};
    _fail('bad-argument', 'the key of an object is text') if !defined $key || ref $key;
    $key = "$key";
    _fail('bad-argument', 'the key of an object is text that can be UTF-8') if !eval { Grape::MsgPack::is_text($key) };
    my $answer = $run->{worker}->want(
        $self->[$INDEX], $want{what}, $want{namespace}, $key, $want{start} || 0, $want{end}, defined $want{position} ? $want{position} : q{},
        $want{about} || {}, Grape::Bytes->new(defined $want{data} ? $want{data} : q{}), $want{upload} || 0,
        exists $want{last} && !$want{last} ? Data::MessagePack::false() : Data::MessagePack::true(),
    );
    my %got;
    @got{qw(kind text found about data items position more)} = @{$answer};
    _fail($got{kind}, $got{text}) if $got{kind} ne q{};
    utf8::encode($got{data}) if utf8::is_utf8($got{data});    # bytes that can be read as UTF-8 come as characters
    return \%got;
}

sub progress {
    my ($self) = @_;
    ($self->[$RUN] || _over())->{worker}->beat;
    return;
}

sub log {    ## no critic (ProhibitBuiltinHomonyms): a logarithm it is not
    my ($self, $level, $text, $fields) = @_;
    return if !$self->logs($level);
    my $run = $self->[$RUN];
    $text = defined $text ? "$text" : q{};
    $text =~ s/\r?\n/ /gx;
    my ($node, $id, $said) = map { Grape::Worker::Output::as_utf8($_) } $run->{worker}{node}, $self->id, $text;
    $id =~ tr/\x00-\x1f\x7f/?/;
    my $beside = defined $fields ? _fields($fields) : q{};
    my $trace = defined $run->{trace} ? $run->{trace} : q{};
    my $who = join "\x1f", $node, $id, $trace ne q{} || $beside ne q{} ? $trace : (), $beside ne q{} ? $beside : ();
    local ($,, $\);    # those of the script are for what the script prints
    print { $run->{worker}{log} } "\x1e$level\x1e$who\x1e$said\n";
    return;
}

# Whether a record of this level is wanted of the node that runs.
sub logs {
    my ($self, $level) = @_;
    my $worker = ($self->[$RUN] || _over())->{worker};
    my $rank = $LEVELS{$level};
    _fail('usage', 'log(LEVEL, TEXT, { NAME => VALUE }): a level is one of ' . join ', ', @LEVELS) if !defined $rank;
    my $levels = $worker->{levels};
    my $wanted = $levels->{ $worker->{node} } || $levels->{q{}} || 'info';
    return $rank >= (defined $LEVELS{$wanted} ? $LEVELS{$wanted} : 1);
}

# As JSON of one line: plain values, and the text of all others.
sub _fields {
    my ($fields) = @_;
    _fail('usage', 'log(LEVEL, TEXT, { NAME => VALUE })') if ref $fields ne 'HASH';
    require JSON::PP;    # takes longer than all the rest
    my $json = JSON::PP->new->utf8->canonical;
    my @names = sort keys %{$fields};
    splice @names, $MAX_FIELDS if @names > $MAX_FIELDS;
    my %found = map { _short($_, $MAX_FIELD_NAME) => _plain($fields->{$_}) } @names;
    my $text = $json->encode(\%found);
    while (length $text > $MAX_FIELDS_TEXT) {
        delete $found{ (sort keys %found)[-1] };
        $text = $json->encode(\%found);
    }
    return %found ? $text : q{};
}

sub _plain {
    my ($value) = @_;
    return $value if !defined $value;
    return $value ? JSON::PP::true() : JSON::PP::false() if ref $value eq 'Data::MessagePack::Boolean';
    my $is_text = ref $value || !looks_like_number(my $copy = $value) || Grape::MsgPack::encode($value) =~ /\A[\xa0-\xbf\xd9-\xdb]/x;
    my $text = "$value";    # by which Perl takes it for text
    return $is_text || $text =~ /inf|nan/xi ? _short($text, $MAX_FIELD) : 0 + $text;
}

sub _short {
    my ($text, $most) = @_;
    utf8::decode($text) if !utf8::is_utf8($text);
    $text =~ s/[\x{d800}-\x{dfff}]|[^\x{0}-\x{10ffff}]/?/gx;
    return substr $text, 0, $most;
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
    my ($name, $worker, $does) = @_;
    my $text = defined $name ? "$name" : q{};
    utf8::decode($text) if !utf8::is_utf8($text);
    return $text if $worker->{known}{$text};
    $does ||= 'emits';
    if ($text =~ /\A([^@]*)@(.*)\z/xs) {
        my $problem = _problem($1, $2, $worker);
        return $text if !defined $problem;
        return _fail('unknown-event', "it $does '$text', but $problem");
    }
    return _fail('unknown-event', "it $does '$text', neither a slot nor an output; " . _hint($text, keys %{ $worker->{known} }));
}

# Why nothing can be emitted to EVENT of APP, if so.
sub _problem {
    my ($app, $event, $worker) = @_;
    my $peers = $worker->{peers};
    return "an event of the own app is written without it: '$event'" if $app eq $worker->{app};
    return "no app '$app' is installed here (no-such-app); " . _hint($app, keys %{$peers}) if !exists $peers->{$app};
    my $bytes = $event;
    utf8::encode($bytes);
    my $size = length $bytes;
    if (!$size || $size > $MAX_NAME || !Grape::MsgPack::is_text($event)) {
        return "the name of an event has 1 to $MAX_NAME bytes of UTF-8, also behind the \@; this one has $size";
    }
    my $events = $peers->{$app};
    return if !$events || grep { $_ eq $event } @{$events};
    return "app '$app' has no slot '$event'; " . _hint($event, @{$events});
}

sub _hint {
    my ($text, @known) = @_;
    @known = sort @known;
    my ($near) = grep { _is_near($text, $_) } @known;
    return "did you mean '$near'?" if defined $near;
    return @known ? 'known are ' . join ', ', map { "'$_'" } @known : 'there is none';
}

# One edit away (another, missing, additional or swapped character), or one within the other.
sub _is_near {
    my ($text, $other) = @_;
    ($text, $other) = (lc $text, lc $other);
    return 0 if $text eq q{} || $other eq q{};
    return 1 if index($other, $text) >= 0 || index($text, $other) >= 0;
    my $most = length $text < length $other ? length $text : length $other;
    my $same = 0;
    $same++ while $same < $most && substr($text, $same, 1) eq substr $other, $same, 1;
    my ($left, $right) = (substr($text, $same), substr $other, $same);
    for my $cut ([0, 1], [1, 0], [1, 1]) {
        my ($from, $to) = @{$cut};
        next if length $left < $from || length $right < $to;
        return 1 if substr($left, $from) eq substr $right, $to;
    }
    return 0 if length $left < 2 || length $right < 2;
    return reverse(substr $left, 0, 2) eq substr($right, 0, 2) && substr($left, 2) eq substr $right, 2;
}

# The options of an emit, checked. OWN: the key of its event.
sub _options {
    my ($own, %given) = @_;
    my %chosen;
    if (exists $given{key}) {
        my $key = delete $given{key};
        $chosen{key} = defined $key ? _key("$key") : Data::MessagePack::false();
    }
    my $delay = delete $given{delay};
    $chosen{delay} = _microseconds(delay => $delay) if defined $delay;
    if (exists $given{timer}) {
        $chosen{timer} = _timer(delete $given{timer}, $own);
        _fail('usage', "timer => '$chosen{timer}' names an emit with delay => SECONDS, and this one has none") if !defined $delay;
    }
    _fail('usage', 'emit(NAME, DATA, key => KEY, delay => SECONDS, timer => NAME), not ' . join ', ', sort keys %given) if %given;
    return \%chosen;
}

sub _microseconds {
    my ($what, $seconds) = @_;
    my $copy = $seconds;
    _fail('usage', "$what => $copy: seconds, 0 or more") if !looks_like_number($copy) || !($copy >= 0 && $copy <= $MAX_DELAY);
    return int($seconds * 1e6);
}

# The name of a timer, as text.
sub _timer {
    my ($timer, $own) = @_;
    _fail('usage', 'the name of a timer is text') if !defined $timer || ref $timer;
    my $bytes = my $text = "$timer";
    utf8::encode($bytes) if utf8::is_utf8($bytes);
    my $size = length $bytes;
    if (!$size || $size > $MAX_TIMER || !Grape::MsgPack::is_text($text)) {
        _fail('usage', "the name of a timer is text of 1 to $MAX_TIMER bytes of UTF-8; this one has $size");
    }
    _fail('no-key', "the event has no key: a timer's name ('$text') is one of a node and key") if !defined $own;
    utf8::decode($text) if !utf8::is_utf8($text);
    return $text;
}

# Key (undef: that of the event) and time-out of a call.
sub _asking {
    my %given = @_;
    my $key;
    if (exists $given{key}) {
        $key = delete $given{key};
        $key = defined $key ? _key("$key") : Data::MessagePack::false();
    }
    my $wait = _microseconds(timeout => defined $given{timeout} ? $given{timeout} : 30);
    delete $given{timeout};
    _fail('usage', 'timeout => 0: an answer takes longer than that') if !$wait;
    _fail('usage', 'timeout => SECONDS: not that long') if $wait > $MAX_WAIT;
    _fail('usage', 'call(NAME, DATA, key => KEY, timeout => SECONDS), not ' . join ', ', sort keys %given) if %given;
    return ($key, $wait);
}

sub _answer {
    my ($run, $name, $ordinal, $asked) = @_;
    my ($digest, $packed, $is_error) = @{ $run->{answers}[$ordinal] };
    if ($digest ne $asked) {
        my $which = $ordinal + 1;
        _fail('handler', "call $which was another one when the event ran before: up to its last call a handler must do the same "
            . 'every time (no time, no chance, nothing from outside)');
    }
    my $answer = Grape::MsgPack::decode($packed);
    return $answer if !$is_error;
    my $said = $answer->{error};
    die Grape::NoAnswer->new(text => $said->{text}) if $said->{code} eq 'no-answer';
    die Grape::CallFailed->new(code => $said->{code}, reason => $said->{text}, node => $said->{node});
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

=head2 emit(NAME, DATA, key => KEY, delay => SECONDS, timer => NAME)

Emits an event. NAME is one that a slot of the app listens to, or one of its outputs, or C<app@event>: a slot of another app
of the server. Without C<key> the event has the key
of the one that caused it; C<< key => undef >> is none. C<delay> may have a fraction. With C<timer> the delayed event has a
name, one of this node and key: it takes the place of the one that was set under it before.

=head2 cancel_timer(NAME)

Takes back the timer of that name, if it is not due yet.

=head2 call(NAME, DATA, key => KEY, timeout => SECONDS)

Asks another node, and returns its reply. The handler is left here, by a L<Grape::Suspended> that has to be let through, and
runs from its beginning when the answer is there; up to its last call it has to do the same every time. It dies with a
L<Grape::CallFailed>, or with a L<Grape::NoAnswer> after C<timeout> (30).

=head2 reply(DATA, final => BOOLEAN)

Answers the call that the event comes from. C<< final => 0 >> says that more follows.

=head2 progress

The handler takes long, but it is alive: its C<timeout> begins anew.

=head2 log(LEVEL, TEXT, { NAME => VALUE, ... })

A record for the log, with the id of the event; values that stand beside the text may be left out. Levels are debug, info,
warning, error and critical. What is below the level that an operator has set is not written.

=head2 logs(LEVEL)

Whether a record of this level is: where it costs something to make its text.

=head1 FAILURES

Misuse fails the event, with a L<Grape::Failure> of these kinds: C<unknown-event>, C<no-key>, C<bad-key>, C<bad-value>,
C<bad-state>, C<too-large>, C<event-over>, C<usage>, C<handler>.

=cut
