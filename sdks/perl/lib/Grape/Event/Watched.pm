package Grape::Event::Watched;

# The state of an event at a node where some states have a ttl. It notes which of them are assigned: that begins their time
# anew, also if the value is the same.

use strict;
use warnings;
use Tie::Hash ();
use parent -norequire => 'Tie::ExtraHash';

our $VERSION = '0.1.0';

# TTL: name -> true.
sub TIEHASH {
    my ($class, $values, $ttl) = @_;
    return bless [$values, $ttl, {}], $class;
}

sub STORE {
    my ($self, $name, $value) = @_;
    $self->[2]{$name} = 1 if $self->[1]{$name};
    $self->[0]{$name} = $value;
    return;
}

sub assigned { my ($self) = @_; return keys %{ $self->[2] } }

1;

__END__

=encoding utf8

=head1 NAME

Grape::Event::Watched - the state of an event, if it may expire

=head1 DESCRIPTION

A part of L<Grape::Event>; nothing that handlers need.

=cut
