package Grape::CallFailed;

use strict;
use warnings;
use parent 'Grape::Failure';

our $VERSION = '0.1.0';

sub kind { return 'call-failed' }
sub text { my ($self) = @_; return "node '$self->{node}' failed: $self->{reason}" }
sub code { my ($self) = @_; return $self->{code} }
sub reason { my ($self) = @_; return $self->{reason} }
sub node { my ($self) = @_; return $self->{node} }

1;

__END__

=encoding utf8

=head1 NAME

Grape::CallFailed - who should have answered a call failed for good

=head1 SYNOPSIS

    my $price;
    if (!eval { $price = $event->call(price => 'tea'); 1 }) {
        die $@ if !ref $@ || !$@->isa('Grape::CallFailed');
        return $event->emit(lost => $@->reason);
    }

=head1 METHODS

A L<Grape::Failure> of the kind C<call-failed>.

=head2 code

The kind of the failure.

=head2 reason

What it failed of.

=head2 node

Whose it is.

=cut
