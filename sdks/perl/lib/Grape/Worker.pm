package Grape::Worker;

# It is a base speaker (docs/protocol.md, section 11): partitions, the store and the log are the business of the adapter,
# which Grape starts before it.

use strict;
use warnings;
use Carp qw(croak);
use POSIX ();
use Data::MessagePack ();
use Scalar::Util qw(looks_like_number refaddr);
use Grape::Bytes ();
use Grape::Event ();
use Grape::Failure ();
use Grape::MsgPack ();
use Grape::Worker::Effects ();
use Grape::Worker::Output ();

our $VERSION = '0.1.0';

my $PROTOCOL = 1;
my ($WELCOME, $DRAIN, $RUN, $OTHER_APPS, $LEVELS, $GOT, $HELLO, $REFUSAL, $BEAT, $RAN, $WANT) = (1, 6, 7, 10, 11, 12, 32, 33, 36, 39, 43);
my $MAX_FRAME = 100_663_296;
my $MAX_EVENT = 8_388_608;    # if Welcome does not say
my $HAND_IN_BYTES = 4 << 20;
my ($MAX_KIND, $MAX_SAID) = (255, 16_000);

my %NUMBERS = map { $_ => 1 } qw(retries backoff backoff_max timeout);
my @FLAGS = qw(ordered eager);
my %OPTIONS = (%NUMBERS, map { $_ => 1 } qw(node states emits on_fail rate burst), @FLAGS);
my %SECONDS = (s => 1, sec => 1, second => 1, min => 60, minute => 60, h => 3_600, hour => 3_600, d => 86_400, day => 86_400);
my ($MAX_RATE, $MAX_BURST) = (1e9, 1_000_000);

sub new {
    my ($class) = @_;
    my %argument = _arguments(@ARGV);
    return bless {
        fd => $argument{fd},
        parent => $argument{parent} || 0,
        config => _configuration(%argument),
        nodes => {},
        order => [],
        slots => [],
        setup => [],
        teardown => [],
        node => undef,    # the one that runs
    }, $class;
}

# Further words belong to the script.
sub _arguments {
    my @words = @_;
    my %found;
    while (@words) {
        my $word = shift @words;
        $found{$1} = shift @words if $word =~ /\A--(fd|parent|config|config-fd)\z/x;
    }
    return %found;
}

# On a command line everybody could read it. It can be read once.
my $configuration;

sub _configuration {
    my %argument = @_;
    return defined $argument{config} ? $argument{config} : '{}' if !defined $argument{'config-fd'};
    if (!defined $configuration) {
        open my $file, '<&', $argument{'config-fd'} or die "--config-fd: $!\n";
        $configuration = do { local $/ = undef; <$file> };
        close $file or die "--config-fd: $!\n";
        $configuration = '{}' if !defined $configuration || $configuration eq q{};
    }
    return $configuration;
}

sub config {
    my ($self) = @_;
    if (!ref $self->{config}) {
        require JSON::PP;    # takes longer than all the rest
        $self->{config} = JSON::PP->new->utf8->decode($self->{config});
    }
    return $self->{config};
}

sub on_setup { my ($self, $call) = @_; push @{ $self->{setup} }, $call; return $self }
sub on_teardown { my ($self, $call) = @_; push @{ $self->{teardown} }, $call; return $self }

# ---------------------------------------------------------------------------------------------------- what there is

sub slot {
    my ($self, $event, $options, $handler) = @_;
    croak('slot(EVENT, { node => NAME, ... }, sub { my ($event) = @_; ... })') if ref $handler ne 'CODE' || ref $options ne 'HASH';
    $event = _name("the event of a slot", $event);
    my ($unknown) = grep { !$OPTIONS{$_} } sort keys %{$options};
    croak("slot '$event' has no option '$unknown'; there are " . join ', ', sort keys %OPTIONS) if defined $unknown;
    my $node = $self->_node(_name("slot '$event': node", $options->{node}));
    croak("node '$node->{name}' listens to '$event' already") if $node->{handlers}{$event};
    _declare($node, $options->{states}) if defined $options->{states};
    my (undef, $file, $line) = caller;
    my %spec = (event => $event, node => $node->{name}, where => "$file:$line");
    if (defined(my $emits = $options->{emits})) {
        $spec{emits} = [map { _name("slot '$event': emits", $_) } ref $emits ? @{$emits} : $emits];
    }
    for my $option (grep { defined $options->{$_} } keys %NUMBERS) {
        my $number = $options->{$option};
        croak("slot '$event': $option => '$number' is no number") if !looks_like_number(my $copy = $number);
        $spec{$option} = $option eq 'retries' ? int $number : 0 + $number;
    }
    $spec{on_fail} = "$options->{on_fail}" if defined $options->{on_fail};
    $spec{rate} = _rate($event, $options->{rate}) if defined $options->{rate};
    $spec{burst} = _burst($event, $options->{burst}, defined $spec{rate}) if defined $options->{burst};
    for my $flag (grep { exists $options->{$_} } @FLAGS) {
        $spec{$flag} = $options->{$flag} ? Data::MessagePack::true() : Data::MessagePack::false();
    }
    $node->{handlers}{$event} = $handler;
    push @{ $self->{slots} }, \%spec;
    return $self;
}

# Events a second: of a number, or text such as '100/s'.
sub _rate {
    my ($event, $given) = @_;
    my $rate = looks_like_number(my $copy = $given) ? 0 + $given : 0;
    if ($given =~ m{\A\s*([0-9]+(?:[.][0-9]+)?)\s*/\s*([a-z]+)\s*\z}x && $SECONDS{$2}) {
        $rate = $1 / $SECONDS{$2};
    }
    return $rate if $rate > 0 && $rate <= $MAX_RATE;
    $given = substr $given, 0, 60;
    croak("slot '$event': rate: a rate is events a second, or text such as '100/s', '20/min' or '500/h', not '$given'");
}

sub _burst {
    my ($event, $burst, $has_rate) = @_;
    if ($burst !~ /\A[0-9]{1,7}\z/x || $burst < 1 || $burst > $MAX_BURST) {
        croak("slot '$event': burst is a whole number from 1 to $MAX_BURST, not '$burst'");
    }
    croak("slot '$event': burst => $burst belongs to a rate, and there is none") if $burst > 1 && !$has_rate;
    return int $burst;
}

sub _node {
    my ($self, $name) = @_;
    if (!$self->{nodes}{$name}) {
        push @{ $self->{order} }, $self->{nodes}{$name} = { name => $name, states => [], declared => {}, handlers => {} };
    }
    return $self->{nodes}{$name};
}

# Names, or a hash of names and how many seconds a value lives (undef: for ever).
sub _declare {
    my ($node, $states) = @_;
    my %ttl = ref $states eq 'HASH' ? %{$states} : map { $_ => undef } ref $states ? @{$states} : $states;
    my @specs;
    for my $name (sort keys %ttl) {
        my %spec = (name => _name("node '$node->{name}': states", $name));
        if (defined $ttl{$name}) {
            croak("state '$name': a ttl is a number of seconds over 0") if !looks_like_number($ttl{$name}) || !($ttl{$name} > 0);
            $spec{ttl} = 0 + $ttl{$name};
        }
        push @specs, \%spec;
    }
    my $is_other = Grape::MsgPack::encode([map { [@{$_}{qw(name ttl)}] } @specs])
        ne Grape::MsgPack::encode([map { [@{$_}{qw(name ttl)}] } @{ $node->{states} }]);
    croak("node '$node->{name}' has other states at another slot") if @{ $node->{states} } && $is_other;
    @{$node}{qw(states declared)} = (\@specs, { map { $_->{name} => 1 } @specs });
    my @ttl = grep { $_->{ttl} } @specs;
    $node->{ttl} = { map { $_->{name} => 1 } @ttl } if @ttl;
    return;
}

sub _name {
    my ($what, $name) = @_;
    croak("$what: a name is needed") if !defined $name || ref $name || $name eq q{};
    my $text = "$name";
    utf8::decode($text) if !utf8::is_utf8($text);    # the script may do without `use utf8`
    return $text;
}

# ------------------------------------------------------------------------------------------------------------ life

sub run {
    my ($self) = @_;
    if (!defined $self->{fd}) {
        print {*STDERR} "This is a worker of Grape, which starts it: t.add_pool(NAME, runtime=\"perl\", entry=\"$0\")\n";
        return 2;
    }
    return 0 if $self->{parent} && getppid != $self->{parent};    # Grape has gone meanwhile
    open $self->{socket}, '+<&=', $self->{fd} or croak("no socket at descriptor $self->{fd}: $!");
    binmode $self->{socket};
    local $SIG{INT} = 'IGNORE';
    local $SIG{PIPE} = sub { };    # not IGNORE: programs that handlers start would inherit it
    my @nodes = map { { name => $_->{name}, states => $_->{states} } } @{ $self->{order} };
    $self->_send(Grape::MsgPack::encode([$HELLO, $PROTOCOL, $$, 'perl', { name => q{}, nodes => \@nodes, slots => $self->{slots} }, [qw(base timers calls peers objects logs)]]));
    $self->{log} = Grape::Worker::Output::raw(\*STDERR);
    $self->{output} = tie *STDOUT, 'Grape::Worker::Output', $self, \*STDOUT;    ## no critic (ProhibitTies): print has to say who printed
    while (defined(my $message = $self->_receive)) {
        my $tag = $message->[0];
        if ($tag == $RUN) { $self->_run($message) }
        elsif ($tag == $WELCOME) { $self->_welcome($message) }
        elsif ($tag == $OTHER_APPS) { $self->{peers} = $message->[1] }
        elsif ($tag == $LEVELS) { $self->{levels} = $message->[1] }
        elsif ($tag == $DRAIN) { last }
        else { croak("a message with the tag $tag, which is no message to a worker") }
        $self->{node} = undef;
    }
    $_->() for @{ $self->{teardown} };
    $self->{output}->finish_line;
    delete $self->{output};
    untie *STDOUT;
    return 0;
}

sub _welcome {
    my ($self, $message) = @_;
    my ($version, $limits, $topology, $peers, $levels) = @{$message}[1, 5, 11, 12, 14];
    croak("Grape speaks protocol $version, this worker $PROTOCOL") if $version != $PROTOCOL;
    $self->{max_event} = defined $limits->{max_event} ? $limits->{max_event} : $MAX_EVENT;
    my @known = ((map { $_->{event} } $topology ? @{ $topology->{slots} || [] } : @{ $self->{slots} }), @{ $topology->{outputs} || [] });
    $self->{pid} = $$;
    $self->{app} = $topology ? $topology->{name} : q{};
    $self->{levels} = $levels || {};    # node -> how much it logs; q{}: of all others
    $self->{peers} = $peers || {};    # other apps -> the events that they listen to; undef: not known
    $self->{known} = { map { $_ => 1 } @known };
    $self->{outputs} = { map { $_ => 1 } @{ $topology->{outputs} || [] } };
    my $died;
    local $SIG{__DIE__} = sub { $died = [$_[0], _frames()] };
    my $is_set_up = eval { $_->() for @{ $self->{setup} }; 1 };
    _end_child($is_set_up, $@) if $$ != $self->{pid};
    return $self->beat if $is_set_up;    # it is ready
    my (undef, $text, $trace) = @{ _failure($@, $died) };
    $self->_send(Grape::MsgPack::encode([$REFUSAL, 'start', "setup: $text\n$trace"]));
    exit 1;
}

# ------------------------------------------------------------------------------------------------------------ runs

# Run events in their order; hand in what they did at the end, when a second has passed, and with one that failed.
sub _run {
    my ($self, $message) = @_;
    my (undef, $name, $count, $names, $keys, $data, $prefix, $first, $ids, $created, $attempt, $states, $answers, $trace) = @{$message};
    my $node = $self->{nodes}{$name} or croak("a run of node '$name', which is not here");
    my ($handlers, $declared) = @{$node}{qw(handlers declared)};
    my ($missing) = grep { !$handlers->{$_} } @{$names};
    croak("a run of '$missing', to which node '$name' does not listen") if defined $missing;
    my $same = @{$names} == 1 ? $names->[0] : undef;
    my $made = Grape::Worker::Effects->new($states, $self->{max_event});
    my %run = (worker => $self, made => $made, attempt => $attempt || 1, created => $created || 0, ttl => $node->{ttl}, ids => $ids, prefix => $prefix, first => $first, answers => $answers || [], trace => $trace, called => 0);
    $self->{node} = $name;
    my ($handed_in, $died) = (0);
    local $SIG{__DIE__} = sub { $died = [$_[0], _frames()] };
    my $second = time;
    for my $i (0 .. $count - 1) {
        # Once an event, so there is no call: its name, key, data, index and run, and then the state that it asks for.
        my $event = bless [defined $same ? $same : $names->[$i], $keys && $keys->[$i], $data && $data->[$i], $i, \%run], 'Grape::Event';
        my $is_done;
        {    # what leaves a handler by `next` comes no further
            $is_done = eval {
                $handlers->{ $event->[0] }->($event);
                $event->finish($declared) if $event->[5];
                1;
            };
        }
        _end_child($is_done, $@) if $$ != $self->{pid};
        if (!$is_done || $run{suspended}) {
            my $failure = $run{suspended} ? _left($run{suspended}, $is_done ? undef : $@) : _failure($@, $died);
            $event->[4] = undef;
            $made->undo($i);
            return $self->_hand_in($made, $i + 1 - $handed_in, [$i, @{$failure}]);
        }
        $event->[4] = undef;    # whoever keeps it can do nothing with it any more
        if ($made->{size} > $HAND_IN_BYTES || time != $second) {
            next if $i == $count - 1;
            $self->_hand_in($made, $i + 1 - $handed_in);
            ($handed_in, $second) = ($i + 1, time);
        }
    }
    return $self->_hand_in($made, $count - $handed_in);
}

# A child that a handler has forked is not the worker: it ends where the handler ends, and says nothing to Grape.
sub _end_child {
    my ($is_done, $error) = @_;
    print {*STDERR} $error if !$is_done;
    STDERR->flush;
    POSIX::_exit($is_done ? 0 : 1);
    return;
}

sub _hand_in {
    my ($self, $made, $events, $failed) = @_;
    $self->{output}->finish_line;    # before what it belongs to is known to be done
    my $failure = $failed ? _failed(@{$failed}) : "\xc0";
    $self->_send("\x96" . pack('C', $RAN) . Grape::MsgPack::encode($events) . $made->packed . $failure);
    $made->clear;
    return;
}

sub _failed {
    my ($index, $kind, $text, $trace, $call) = @_;
    my $said = Grape::MsgPack::encode([$index, $kind, $text, $trace]);
    return $said if !$call;
    substr $said, 0, 1, "\x95";
    return join q{}, $said, "\x95", Grape::MsgPack::encode($call->{event}), Grape::MsgPack::encode(Grape::Bytes->new($call->{digest})),
        Grape::MsgPack::encode($call->{timeout}), $call->{data}, Grape::MsgPack::encode($call->{key});
}

# What becomes of an event that has come to a call: it waits, unless its handler has caught what it was left by. ERROR: what
# it died of then.
sub _left {
    my ($suspended, $error) = @_;
    return [q{}, q{}, q{}, $suspended] if ref $error && refaddr $error == refaddr $suspended;
    my $text = "it caught what ends its handler while it waits for the answer to '$suspended->{event}': an eval has to die again of "
        . 'what is no Grape::CallFailed and no Grape::NoAnswer';
    return ['handler', $text, $text];
}

# Of an event that asks for objects: the fields of the answer.
sub want {
    my ($self, @fields) = @_;
    $self->_send(Grape::MsgPack::encode([$WANT, @fields]));
    my $message = $self->_receive;
    exit 0 if !defined $message;    # Grape has gone
    my ($tag, @answer) = @{$message};
    croak("a message with the tag $tag, where objects were asked for") if $tag != $GOT;
    return \@answer;
}

sub beat { my ($self) = @_; $self->_send("\x91" . pack 'C', $BEAT); return }

# -------------------------------------------------------------------------------------------------------- failures

# Kind, text and trace of what a handler died of. DIED: what the last `die` was, and where.
sub _failure {
    my ($error, $died) = @_;
    my ($kind, $text) = (ref $error || 'die');
    if (!eval {
        ($kind, $text) = ref $error && $kind->isa('Grape::Failure') ? ($error->kind, $error->text) : ($kind, "$error");
        1;
    }) {
        $text = 'an error that cannot be told as text';
    }
    $text = _cut($text, $MAX_SAID);
    $text =~ s/\s+\z//x;
    $text = 'the handler was left by next, last or redo' if !ref $error && $text eq q{};
    my $is_this = $died && (ref $error ? ref $died->[0] && refaddr $died->[0] == refaddr $error : !ref $died->[0] && $died->[0] eq $error);
    my $trace = join "\n", $text, map { "    at $_" } $is_this ? @{ $died->[1] } : ();
    return [_cut($kind, $MAX_KIND), $text, _cut($trace, $MAX_SAID)];
}

# Errors may be in any encoding, or none.
sub _cut {
    my ($text, $size) = @_;
    utf8::decode($text) if !utf8::is_utf8($text);
    $text =~ s/[\x{d800}-\x{dfff}]|[^\x{0}-\x{10ffff}]/?/gx;
    utf8::upgrade($text);
    return substr $text, 0, $size;
}

# Where it dies, in the author's own code, the innermost place first.
sub _frames {
    my ($depth, @frames) = (0);
    while (my ($package, $file, $line) = caller ++$depth) {
        last if $package eq __PACKAGE__;
        next if $package =~ /\AGrape::(?:Event|MsgPack|Bytes|Time|Ext|Failure|Storage)\z/x;
        my $sub = (caller $depth + 1)[3] || q{};
        push @frames, "$file line $line" . ($sub eq '(eval)' || $sub =~ /__ANON__\z/x ? q{} : " in $sub");
    }
    return \@frames;
}

# ---------------------------------------------------------------------------------------------------------- frames

sub _send {
    my ($self, $packed) = @_;
    my $frame = pack('V', length $packed) . $packed;
    my $at = 0;
    while ($at < length $frame) {
        my $sent = syswrite $self->{socket}, $frame, length($frame) - $at, $at;
        next if !defined $sent && $!{EINTR};
        exit 0 if !defined $sent;    # Grape has gone
        $at += $sent;
    }
    return;
}

sub _receive {
    my ($self) = @_;
    my $head = $self->_read(4);
    return if !defined $head;
    my $size = unpack 'V', $head;
    croak("a frame of $size bytes; the limit is $MAX_FRAME") if $size > $MAX_FRAME;
    my $packed = $self->_read($size);
    return if !defined $packed;
    my $message = Grape::MsgPack::decode($packed);
    croak('a frame that is no message') if ref $message ne 'ARRAY' || !@{$message} || !looks_like_number($message->[0]);
    return $message;
}

# So many bytes, or undef: the stream has ended.
sub _read {
    my ($self, $size) = @_;
    my $bytes = q{};
    while (length $bytes < $size) {
        my $got = sysread $self->{socket}, $bytes, $size - length $bytes, length $bytes;
        next if !defined $got && $!{EINTR};
        return if !$got;
    }
    return $bytes;
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Worker - write the nodes of a Grape app in Perl

=head1 SYNOPSIS

    use strict;
    use warnings;
    use Grape::Worker;

    my $worker = Grape::Worker->new;

    $worker->slot(line => { node => 'Split', emits => ['word'] }, sub {
        my ($event) = @_;
        $event->emit(word => undef, key => $_) for split ' ', $event->data;
    });

    $worker->slot(word => { node => 'Count', states => ['count'], emits => ['total'] }, sub {
        my ($event) = @_;
        my $count = ++$event->state->{count};
        $event->emit(total => { word => $event->key, count => $count });
    });

    exit $worker->run;

=head1 DESCRIPTION

Grape starts the script as a worker of a pool (C<t.add_pool("perl", runtime="perl", entry="count.pl")>). It declares
which node listens to which event, and runs their handlers, one event after the other. More workers of the pool run at
once; events of one node and key never do.

The README has how to install it, the types, failures and numbers. What a handler does with its event is in
L<Grape::Event>.

=head1 METHODS

=head2 new

Reads the words with which Grape has started the script.

=head2 slot(EVENT, { node => NAME, ... }, HANDLER)

Hand every EVENT to HANDLER. Several slots may be of one node, each with a handler of its own. Returns the worker. Options:

=over

=item node

Its name. Needed.

=item states

A list of names, or a hash of names and seconds: so long a value lives (undef: for ever). They are the node's; its other
slots need not say them again.

=item emits

Names that it emits, for the picture of the app.

=item retries

Attempts after the first. 3.

=item backoff, backoff_max

Seconds before the first retry, doubling up to the second number. 1 and 60.

=item timeout

Seconds that a handler may take; 0: any. 60. A worker over it is ended, and its event has failed.

=item on_fail

What becomes of an event after its last attempt: C<dead> is a dead letter, C<stop> lets an operator decide. C<dead>.

=item ordered

Whether later events of the key wait for one that failed. True.

=item rate, burst

How many events the handler gets at most, over all workers of the app: C<100/s>, C<20/min>, C<500/h>, C<10/day>, or a number
a second; so many of them at once after a pause. The rest waits. Any number, and 1.

=item eager

Whether a client's event runs before it is accepted, which answers it sooner; every slot of the event has to say so. False.

=back

=head2 config

The app's configuration, as a reference to a hash.

=head2 on_setup(CALL)

Called before the first event. If it dies, the worker could not start.

=head2 on_teardown(CALL)

Called after the last event. A worker that is killed tears nothing down.

=head2 run

Serve until Grape says to stop. Returns the exit code. Call it once, as the last thing.

=head1 OUTPUT

STDOUT is tied while C<run> runs: each line is shown with the node whose handler printed it. STDERR goes out as it is.

=cut
