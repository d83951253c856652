package Grape::Worker::Effects;

# What the events of a run have done: emits in columns, already encoded; replies; the records of their keys. Events write
# into it themselves, as that is done for each of them.

use strict;
use warnings;
use Grape::MsgPack ();

our $VERSION = '0.1.0';

# STATES: key -> state -> value, as stored.
sub new {
    my ($class, $states, $max_event) = @_;
    return bless({ records => $states || {}, max_event => $max_event }, $class)->clear;
}

# What was handed in is done. Records stay: later events of the run see them.
sub clear {
    my ($self) = @_;
    $self->{$_} = [] for qw(origins names data keys delays timers answering replies);
    $self->{touched} = {};    # key -> its record before
    $self->{assigned} = {};    # key -> state -> true: has a ttl, and was assigned
    $self->{size} = 0;
    return $self;
}

# An event has failed, the last one so far.
sub undo {
    my ($self, $index) = @_;
    my $left = @{ $self->{origins} };
    $left-- while $left && $self->{origins}[$left - 1] == $index;
    for my $column (qw(origins names data keys delays timers)) {
        $#{ $self->{$column} } = $left - 1 if @{ $self->{$column} } > $left;
    }
    while (@{ $self->{answering} } && $self->{answering}[-1] == $index) {
        pop @{ $self->{$_} } for qw(answering replies);
    }
    return;
}

# The fields of Ran between the number of events and the failure.
sub packed {
    my ($self) = @_;
    return $self->_emits . $self->_changes . $self->_replies;
}

sub _emits {
    my ($self) = @_;
    my ($names, $data, $keys, $delays, $timers) = @{$self}{qw(names data keys delays timers)};
    my $count = @{$data} or return "\x95\x90\x90\x90\xc0\xc0";
    my $first = $names->[0];
    my $is_mixed = grep { $_ ne $first } @{$names};
    for my $column ($keys, $timers) {
        $#{$column} = $count - 1 if @{$column};
    }
    return join q{}, @{$timers} ? "\x96" : "\x95",
        Grape::MsgPack::encode_plain($self->{origins}),
        Grape::MsgPack::encode_plain($is_mixed ? $names : [$first]),
        Grape::MsgPack::array_head($count), @{$data},
        @{$keys} ? Grape::MsgPack::encode_plain($keys) : "\xc0",
        @{$delays} ? Grape::MsgPack::encode_plain([map { defined $_ ? $_ : -1 } @{$delays}[0 .. $count - 1]]) : "\xc0",
        @{$timers} ? Grape::MsgPack::encode_plain($timers) : ();
}

sub _changes {
    my ($self) = @_;
    my @changes;
    for my $key (keys %{ $self->{touched} }) {
        my ($old, $new, $assigned) = ($self->{touched}{$key}, $self->{records}{$key}, $self->{assigned}{$key});
        my @set;
        for my $name (keys %{$new}) {
            my $packed = _value($new->{$name});
            next if exists $old->{$name} && !$assigned->{$name} && _value($old->{$name}) eq $packed;
            push @set, Grape::MsgPack::encode($name) . $packed;
        }
        my @deleted = grep { !exists $new->{$_} } keys %{$old};
        next if !@set && !@deleted;
        push @changes, join q{}, "\x93", Grape::MsgPack::encode($key), Grape::MsgPack::map_head(scalar @set), @set,
            Grape::MsgPack::encode(\@deleted);
    }
    return join q{}, Grape::MsgPack::array_head(scalar @changes), @changes;
}

sub _value { return ref $_[0] eq 'Grape::Event::Packed' ? ${ $_[0] } : Grape::MsgPack::encode($_[0]) }

sub _replies {
    my ($self) = @_;
    my ($from, $replies) = @{$self}{qw(answering replies)};
    return join q{}, Grape::MsgPack::array_head(scalar @{$replies}),
        map { ("\x93", Grape::MsgPack::encode_plain($from->[$_]), $replies->[$_]) } 0 .. $#{$replies};
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Worker::Effects - what the events of a run have done

=head1 DESCRIPTION

A part of L<Grape::Worker>; nothing that handlers need.

=cut
