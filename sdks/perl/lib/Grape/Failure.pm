package Grape::Failure;

use strict;
use warnings;
use overload q{""} => 'text', bool => sub { 1 }, fallback => 1;

our $VERSION = '0.1.0';

sub new {
    my ($class, %what) = @_;
    return bless {%what}, $class;
}

sub kind { my ($self) = @_; return defined $self->{kind} ? $self->{kind} : 'error' }
sub text { my ($self) = @_; return defined $self->{text} ? $self->{text} : q{} }

1;

__END__

=encoding utf8

=head1 NAME

Grape::Failure - an error with a kind

=head1 SYNOPSIS

    die Grape::Failure->new(kind => 'bad-amount', text => 'the amount is negative');

=head1 DESCRIPTION

A handler that dies fails its event. The failure is told with a text and a kind. The kind is for programs: operators sort
dead letters by it, and it is what a caller gets. Without a C<Grape::Failure> it is C<die>, or the class of the object
that was thrown.

=head1 METHODS

=head2 new(kind => KIND, text => TEXT)

A kind has at most 255 characters. Without one it is C<error>.

=head2 kind

For programs.

=head2 text

For people. A failure that is used as text is its text.

=cut
