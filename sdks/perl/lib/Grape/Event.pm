package Grape::Event;

# An event, while its handler runs.

use strict;
use warnings;
use Carp qw(croak);
use Grape::MsgPack ();

our $VERSION = '0.1.0';

my ($NAME, $KEY, $DATA, $INDEX, $RUN, $STATE) = (0 .. 5);
my %LEVELS = map { $_ => 1 } qw(debug info warning error critical);
my $MAX_KEY = 4_096;
my $SHORT = 1_000;    # such a text is encoded when the run is handed in, if it is still there then

our @CARP_NOT = qw(Grape::Worker Grape::MsgPack);

sub name { return $_[0][$NAME] }
sub key { return $_[0][$KEY] }
sub data { return $_[0][$DATA] }
sub attempt { return $_[0]->_run->{attempt} }

# Seconds since 1970.
sub created { return $_[0]->_run->{created} / 1e6 }

sub id {
    my ($self) = @_;
    my $run = $self->_run;
    return $run->{ids} ? $run->{ids}[ $self->[$INDEX] ] : $run->{prefix} . ($run->{first} + $self->[$INDEX]);
}

# The state of the event's key, a hash of the node's states; what is changed in it is stored if the event succeeds.
sub state {    ## no critic (ProhibitBuiltinHomonyms): that is what it is called everywhere
    my ($self) = @_;
    return $self->[$STATE] if $self->[$STATE];
    croak("event '$self->[$NAME]' has no key, so that there is no state for it") if !defined $self->[$KEY];
    my $stored = $self->_run->{made}{records}{ $self->[$KEY] } || {};
    return $self->[$STATE] = _copy($stored);    # what the handler changes in place must not be what is stored
}

sub _copy {
    my ($value) = @_;
    return { map { $_ => ref $value->{$_} ? _copy($value->{$_}) : $value->{$_} } keys %{$value} } if ref $value eq 'HASH';
    return [map { ref $_ ? _copy($_) : $_ } @{$value}] if ref $value eq 'ARRAY';
    return $value;
}

# emit(NAME, DATA, key => KEY, delay => SECONDS). Without a key that of the event is taken; key => undef is none.
sub emit {
    my ($self, $name, $data, %options) = @_;
    my $run = $self->_run;
    my ($worker, $made) = @{$run}{qw(worker made)};
    if (!$worker->{known}{$name}) {
        die Grape::Failure->new(kind => 'unknown-event', text => "it emits '$name', neither a slot nor an output" . _near($name, $worker->{known}));
    }
    my $key;
    if (exists $options{key}) {
        $key = defined $options{key} ? _key("$options{key}") : Data::MessagePack::false();
    }
    my $delay = -1;
    if (defined $options{delay}) {
        croak("delay => $options{delay}: seconds, 0 or more") if !($options{delay} >= 0);
        $delay = int($options{delay} * 1e6);
    }
    if (keys %options > (exists $options{key}) + (exists $options{delay})) {
        croak('emit(NAME, DATA, key => KEY, delay => SECONDS)');
    }
    my $packed = $self->_packed($data);
    push @{ $made->{origins} }, $self->[$INDEX];
    push @{ $made->{names} }, $name;
    push @{ $made->{data} }, $packed;
    push @{ $made->{keys} }, $key;
    push @{ $made->{delays} }, $delay;
    return;
}

# Answer whoever waits for this event, or for one that it comes from. reply(DATA, final => 0) says that more follows.
sub reply {
    my ($self, $data, %options) = @_;
    my $final = !exists $options{final} || $options{final};
    my $packed = $self->_packed($data);
    push @{ $self->_run->{made}{replies} }, "\x93" . Grape::MsgPack::encode($self->[$INDEX]) . $packed . ($final ? "\xc3" : "\xc2");
    return;
}

# It takes long, but it is alive: its timeout starts anew.
sub progress {
    my ($self) = @_;
    $self->_run->{worker}->_beat;
    return;
}

# A line for the log, with a level.
sub log {    ## no critic (ProhibitBuiltinHomonyms): a logarithm it is not
    my ($self, $level, $text) = @_;
    croak("log(LEVEL, TEXT): a level is one of " . join ', ', sort keys %LEVELS) if !$LEVELS{$level};
    $text =~ s/\n/ /gx;
    utf8::encode($text) if utf8::is_utf8($text);
    syswrite STDERR, "\x1e$level\x1e@{[$self->_run->{worker}{node}]}\x1e$text\n";
    return;
}

sub _run {
    my ($self) = @_;
    return $self->[$RUN] || croak('an event is over when its handler returns: it cannot be used later');
}

sub _packed {
    my ($self, $data) = @_;
    my $packed = eval { Grape::MsgPack::encode($data) };
    if (!defined $packed) {
        my $why = $@ =~ s/\s+at\s\S+\sline\s\d+[.]?\n\z//xr;
        die Grape::Failure->new(kind => 'bad-value', text => $why);
    }
    my $size = length $packed;
    my $most = $self->[$RUN]{worker}{max_event};
    die Grape::Failure->new(kind => 'too-large', text => "a value of $size bytes is over max-event ($most)") if $size > $most;
    $self->[$RUN]{made}{size} += $size;
    return $packed;
}

sub _key {
    my ($key) = @_;
    my $bytes = $key;
    utf8::encode($bytes) if utf8::is_utf8($bytes);
    my $size = length $bytes;
    if (!$size || $size > $MAX_KEY || !utf8::decode(my $copy = $bytes)) {
        die Grape::Failure->new(kind => 'bad-key', text => "a key is text of 1 to $MAX_KEY bytes of UTF-8, not of $size");
    }
    return $key;
}

sub _near {
    my ($name, $known) = @_;
    my ($first) = grep { lc $_ eq lc $name || index($_, $name) >= 0 || index($name, $_) >= 0 } sort keys %{$known};
    return defined $first ? "; did you mean '$first'?" : '; known are ' . join ', ', map { "'$_'" } sort keys %{$known};
}

# The handler has returned: what of the state has changed?
sub _finish {
    my ($self, $names) = @_;
    my ($made, $key, $new) = ($self->[$RUN]{made}, $self->[$KEY], $self->[$STATE]);
    my $old = $made->{records}{$key};
    my ($known, %changed) = (0);
    for my $name (@{$names}) {
        if (exists $new->{$name}) {
            $known++;
            my $value = $new->{$name};    # a copy: a number that was looked at as a text would travel as one
            next if $old && !ref $value && exists $old->{$name} && !_differs($old->{$name}, $value);
            $changed{$name} = !defined $value || (!ref $value && length $value < $SHORT) ? $new->{$name} : \$self->_packed($new->{$name});
        }
        elsif ($old && exists $old->{$name}) {
            $changed{$name} = [];    # deleted
        }
    }
    _refuse_unknown($names, $new) if $known < keys %{$new};
    return if !%changed;
    my $change = $made->{changes}{$key} ||= {};
    @{$change}{ keys %changed } = values %changed;
    $made->{records}{$key} = $new;
    return;
}

sub _refuse_unknown {
    my ($names, $state) = @_;
    my %declared = map { $_ => 1 } @{$names};
    my ($unknown) = grep { !$declared{$_} } sort keys %{$state};
    die Grape::Failure->new(kind => 'bad-state', text => "the node has no state '$unknown'; declared are " . join ', ', @{$names});
}

sub _differs {
    my ($old, $new) = @_;
    return defined $old || defined $new if !defined $old || !defined $new;
    return ref $old || $old ne $new;
}

1;
