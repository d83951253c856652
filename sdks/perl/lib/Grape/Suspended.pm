package Grape::Suspended;

use strict;
use warnings;
use overload q{""} => sub { my ($self) = @_; return "waits for the answer to '$self->{event}'" }, bool => sub { 1 }, fallback => 1;

our $VERSION = '0.1.0';

sub new {
    my ($class, %what) = @_;
    return bless {%what}, $class;
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Suspended - what a handler is left by at a call

=head1 DESCRIPTION

No failure: the answer to the call is yet to come, and with it the handler runs from its beginning. An C<eval> that catches it
has to die again of it; the event fails if it does not.

=cut
