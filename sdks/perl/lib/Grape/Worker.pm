package Grape::Worker;

# A worker of Grape in Perl: it declares slots, and runs their handlers. It is a base speaker (docs/protocol.md, section
# 11): partitions, the store and the log are the adapter's business, which Grape starts before it.

use strict;
use warnings;
use Carp qw(croak longmess);
use Data::MessagePack ();
use IO::Handle ();
use IO::Socket ();
use JSON::PP ();
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
use Grape::Event ();
use Grape::MsgPack ();

our $VERSION = '0.1.0';

my $PROTOCOL = 1;
my ($WELCOME, $DRAIN, $RUN, $HELLO, $REFUSAL, $BEAT, $RAN) = (1, 6, 7, 32, 33, 36, 39);
my $MAX_FRAME = 100_663_296;
my $HAND_IN_SECONDS = 1;
my $HAND_IN_BYTES = 4 << 20;
my $READ = 1 << 20;

my %OPTIONS = map { $_ => 1 } qw(node states emits retries backoff backoff_max timeout on_fail ordered);

our @CARP_NOT = qw(Grape::Event Grape::MsgPack);

sub new {
    my ($class) = @_;
    my %argument = _arguments(@ARGV);
    return bless {
        slots => [],
        nodes => {},
        order => [],
        fd => $argument{fd},
        parent => $argument{parent} || 0,
        config => JSON::PP->new->utf8->decode(defined $argument{config} ? $argument{config} : '{}'),
        inbox => q{},
        setup => [],
        teardown => [],
    }, $class;
}

sub _arguments {
    my @words = @_;
    my %found;
    while (@words) {
        my $word = shift @words;
        $found{$1} = shift @words if $word =~ /\A--(fd|parent|config)\z/x;
    }
    return %found;
}

# The app's configuration, as a hash.
sub config { my ($self) = @_; return $self->{config} }

# Hand every event of this name to a handler.
sub slot {
    my ($self, $event, $options, $handler) = @_;
    croak('slot(EVENT, { node => NAME, ... }, sub { my ($event) = @_; ... })') if ref $handler ne 'CODE' || ref $options ne 'HASH';
    my ($unknown) = grep { !$OPTIONS{$_} } sort keys %{$options};
    croak("slot '$event' has no option '$unknown'; there are " . join ', ', sort keys %OPTIONS) if defined $unknown;
    my $name = $options->{node};
    croak("slot '$event' needs a name for its node: { node => 'Count' }") if !defined $name || $name eq q{};
    my $node = $self->{nodes}{$name};
    if (!$node) {
        $node = $self->{nodes}{$name} = { name => $name, states => [], handlers => {} };
        push @{ $self->{order} }, $node;
    }
    croak("node '$name' listens to '$event' already") if $node->{handlers}{$event};
    $node->{handlers}{$event} = $handler;
    $node->{states} = _states($options->{states}) if $options->{states};
    $node->{state_names} = [map { $_->{name} } @{ $node->{states} }];
    my (undef, $file, $line) = caller;
    my %spec = (event => "$event", node => "$name", where => "$file:$line");
    $spec{emits} = ref $options->{emits} ? $options->{emits} : [$options->{emits}] if $options->{emits};
    $spec{retries} = $options->{retries} + 0 if defined $options->{retries};
    $spec{$_} = Grape::Worker::_double($options->{$_}) for grep { defined $options->{$_} } qw(backoff backoff_max timeout);
    $spec{on_fail} = "$options->{on_fail}" if defined $options->{on_fail};
    $spec{ordered} = $options->{ordered} ? Data::MessagePack::true() : Data::MessagePack::false() if defined $options->{ordered};
    push @{ $self->{slots} }, \%spec;
    return $self;
}

sub _double { my ($number) = @_; return $number + 0 }

# Names, or a hash of names and how many seconds a value lives.
sub _states {
    my ($states) = @_;
    return [map { { name => $_ } } ref $states ? @{$states} : $states] if ref $states ne 'HASH';
    return [map { defined $states->{$_} ? { name => $_, ttl => $states->{$_} + 0 } : { name => $_ } } sort keys %{$states}];
}

# Called before the first event, and after the last one.
sub on_setup { my ($self, $call) = @_; push @{ $self->{setup} }, $call; return $self }
sub on_teardown { my ($self, $call) = @_; push @{ $self->{teardown} }, $call; return $self }

# Serve until Grape says to stop. Returns the exit code.
sub run {
    my ($self) = @_;
    if (!defined $self->{fd}) {
        print {*STDERR} "This is a worker of Grape, which starts it: t.add_pool(NAME, runtime=\"perl\", entry=\"$0\")\n";
        return 2;
    }
    $self->{socket} = IO::Socket->new_from_fd($self->{fd}, 'r+') or croak("no socket at descriptor $self->{fd}: $!");
    binmode $self->{socket};
    local $SIG{INT} = 'IGNORE';
    local $SIG{PIPE} = 'IGNORE';
    my $topology = { name => q{}, nodes => [map { { name => $_->{name}, states => $_->{states} } } @{ $self->{order} }], slots => $self->{slots} };
    $self->_send(Grape::MsgPack::encode([$HELLO, $PROTOCOL, $$, 'perl', $topology, ['base']]));
    while (defined(my $message = $self->_receive)) {
        my $tag = $message->[0];
        if ($tag == $RUN) { $self->_run($message) }
        elsif ($tag == $WELCOME) { $self->_welcome($message) }
        elsif ($tag == $DRAIN) { last }
    }
    $_->() for @{ $self->{teardown} };
    return 0;
}

sub _welcome {
    my ($self, $message) = @_;
    my (undef, $version, undef, undef, undef, $limits, undef, undef, undef, undef, undef, $topology) = @{$message};
    croak("Grape speaks protocol $version, this worker $PROTOCOL") if $version != $PROTOCOL;
    $self->{max_event} = $limits->{max_event};
    $self->{known} = { map { $_ => 1 } (map { $_->{event} } @{ $topology->{slots} || [] }), @{ $topology->{outputs} || [] } };
    tie *STDOUT, 'Grape::Worker::Marked', $self, \*STDOUT;    ## no critic (ProhibitTies): print has to say who printed
    local $SIG{__DIE__} = sub { $self->{trace} = longmess('') };
    if (!eval { $_->() for @{ $self->{setup} }; 1 }) {
        my $text = "setup failed: $@";
        $self->_send(Grape::MsgPack::encode([$REFUSAL, 'start', $text]));
        exit 1;
    }
    return;
}

# ---------------------------------------------------------------------------------------------------------- runs

# Run events in their order; hand in what they did at the end, once a second, and with one that failed.
sub _run {
    my ($self, $message) = @_;
    my (undef, $name, $count, $names, $keys, $data, $prefix, $first, $ids, $created, $attempt, $states) = @{$message};
    my $node = $self->{nodes}{$name} or croak("a run of node '$name', which is not here");
    my $uniform = @{$names} == 1 ? $names->[0] : undef;
    my $handler = defined $uniform ? $node->{handlers}{$uniform} : undef;
    my $trace = q{};
    local $SIG{__DIE__} = sub { $trace = _trace($_[0]) };
    my $made = Grape::Worker::Effects->new($states);
    my %run = (worker => $self, made => $made, ids => $ids, prefix => $prefix, first => $first, created => $created, attempt => $attempt);
    my ($origins, $replies, $state_names) = ($made->{origins}, $made->{replies}, $node->{state_names});
    my $since = clock_gettime(CLOCK_MONOTONIC);
    $self->{node} = $name;
    for my $i (0 .. $count - 1) {
        # Runs once an event. The fields of an event: name, key, data, index, run, state.
        my $event = bless [defined $uniform ? $uniform : $names->[$i], $keys && $keys->[$i], $data && $data->[$i], $i, \%run], 'Grape::Event';
        my ($emits, $answers) = (scalar @{$origins}, scalar @{$replies});
        my $call = $handler || $node->{handlers}{ $names->[$i] };
        if (!eval { $call->($event); $event->_finish($state_names) if $event->[5]; 1 }) {
            my $error = $@;
            $event->[4] = undef;
            $made->undo($emits, $answers);
            $self->_hand_in($made, $i, _failure($error, $trace));
            $self->{node} = q{};
            return;
        }
        $event->[4] = undef;    # whoever keeps it cannot emit with it any more
        $made->{events}++;
        if ($made->{size} > $HAND_IN_BYTES || clock_gettime(CLOCK_MONOTONIC) - $since > $HAND_IN_SECONDS) {
            last if $i == $count - 1;
            $self->_hand_in($made);
            $since = clock_gettime(CLOCK_MONOTONIC);
        }
    }
    $self->_hand_in($made);
    $self->{node} = q{};
    return;
}

sub _hand_in {
    my ($self, $made, $index, $failure) = @_;
    $made->{events}++ if $failure;
    my $failed = $failure ? Grape::MsgPack::encode([$index, @{$failure}]) : "\xc0";
    $self->_send("\x96" . pack('C', $RAN) . Grape::MsgPack::encode($made->{events}) . $made->packed . $failed);
    $made->clear;
    return;
}

# What went wrong, as kind, text and trace.
sub _failure {
    my ($error, $trace) = @_;
    if (ref $error && eval { $error->isa('Grape::Failure') }) {
        return [$error->kind, $error->text, $trace];
    }
    my $kind = ref $error || 'die';
    my $text = "$error";
    $text =~ s/\n\z//x;
    return [$kind, substr($text, 0, 4_000), substr($trace, 0, 16_000)];
}

# The user's own lines of where it died, the innermost first.
sub _trace {
    my ($error) = @_;
    local $Carp::CarpLevel = 0;
    my @lines = grep { !m{\bGrape/(Worker|Event|MsgPack)[.]pm}x && !/Grape::Worker::(__ANON__|_run|run)/x } split /\n/x, longmess('died');
    return join "\n", "$error" =~ s/\n\z//xr, map { s/\A\s*/    /xr } @lines;
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
    while (1) {
        if (length $self->{inbox} >= 4) {
            my $size = unpack 'V', $self->{inbox};
            croak("a frame of $size bytes; the limit is $MAX_FRAME") if $size > $MAX_FRAME;
            if (length $self->{inbox} >= 4 + $size) {
                my $packed = substr $self->{inbox}, 4, $size;
                substr $self->{inbox}, 0, 4 + $size, q{};
                return Grape::MsgPack::decode($packed);
            }
        }
        my $got = sysread $self->{socket}, $self->{inbox}, $READ, length $self->{inbox};
        next if !defined $got && $!{EINTR};
        return if !$got;
    }
    return;
}

sub _beat { my ($self) = @_; $self->_send("\x91" . pack 'C', $BEAT); return }

package Grape::Worker::Effects;

# What the events of a run have done: columns of emits, already encoded, and changed records.

sub new {
    my ($class, $states) = @_;
    my $self = bless { records => $states || {} }, $class;
    return $self->clear;
}

sub clear {
    my ($self) = @_;
    @{ $self->{$_} ||= [] } = () for qw(origins names data keys delays replies);
    @{$self}{qw(events changes size)} = (0, {}, 0);
    return $self;
}

sub undo {
    my ($self, $emits, $replies) = @_;
    $#{ $self->{$_} } = $emits - 1 for qw(origins names data keys delays);
    $#{ $self->{replies} } = $replies - 1;
    return;
}

# The fields of Ran behind the first.
sub packed {
    my ($self) = @_;
    my ($names, $keys, $delays) = @{$self}{qw(names keys delays)};
    my $first = @{$names} ? $names->[0] : q{};
    my $emits = "\x95" . Grape::MsgPack::encode($self->{origins})
        . Grape::MsgPack::encode((grep { $_ ne $first } @{$names}) ? $names : [@{$names} ? $first : ()])
        . Grape::MsgPack::array_head(scalar @{ $self->{data} }) . join(q{}, @{ $self->{data} })
        . ((grep { defined } @{$keys}) ? Grape::MsgPack::encode($keys) : "\xc0")
        . ((grep { $_ >= 0 } @{$delays}) ? Grape::MsgPack::encode($delays) : "\xc0");
    my @changes;
    # What changed of a key, by state: a reference to its encoded value, a plain value, or an empty list: it is deleted.
    while (my ($key, $change) = each %{ $self->{changes} }) {
        my ($count, $values, @deleted) = (0, q{});
        for my $name (keys %{$change}) {
            my $value = $change->{$name};
            if (ref $value eq 'ARRAY') { push @deleted, $name; next }
            $count++;
            $values .= Grape::MsgPack::encode($name) . (ref $value ? ${$value} : Grape::MsgPack::encode($value));
        }
        push @changes, "\x93" . Grape::MsgPack::encode($key) . Grape::MsgPack::map_head($count) . $values . Grape::MsgPack::encode(\@deleted);
    }
    return $emits . Grape::MsgPack::array_head(scalar @changes) . join(q{}, @changes)
        . Grape::MsgPack::array_head(scalar @{ $self->{replies} }) . join q{}, @{ $self->{replies} };
}

package Grape::Worker::Marked;

# Standard output: each line says which node printed it.

sub TIEHANDLE { my ($class, $worker, $handle) = @_; open my $out, '>&', $handle or die "STDOUT: $!"; $out->autoflush(1); return bless { worker => $worker, out => $out, line => q{} }, $class }
sub PRINT {
    my ($self, @texts) = @_;
    $self->{line} .= join defined $, ? $, : q{}, @texts;
    $self->{line} .= $\ if defined $\;
    my $mark = $self->{worker}{node} ? "\x1e\x1e$self->{worker}{node}\x1e" : q{};
    while ($self->{line} =~ s/\A([^\n]*)\n//x) {
        my $line = "$mark$1\n";
        utf8::encode($line) if utf8::is_utf8($line);
        print { $self->{out} } $line;
    }
    return 1;
}
sub PRINTF { my ($self, $format, @values) = @_; return $self->PRINT(sprintf $format, @values) }
sub WRITE { my ($self, $text, $size, $at) = @_; return $self->PRINT(substr $text, $at || 0, $size) }
sub FILENO { my ($self) = @_; return fileno $self->{out} }
sub BINMODE { return 1 }

package Grape::Failure;

# die Grape::Failure->new(kind => 'bad-amount', text => 'it is negative');
sub new { my ($class, %what) = @_; return bless {%what}, $class }
sub kind { my ($self) = @_; return defined $self->{kind} ? $self->{kind} : 'error' }
sub text { my ($self) = @_; return defined $self->{text} ? $self->{text} : q{} }

1;
