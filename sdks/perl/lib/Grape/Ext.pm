package Grape::Ext;

use strict;
use warnings;
use Carp qw(croak);

our $VERSION = '0.1.0';

sub new {
    my ($class, $type, $bytes) = @_;
    croak('Grape::Ext->new(TYPE, BYTES): a type is -128 to 127') if !defined $bytes || $type < -128 || $type > 127;
    croak('these are characters over 255, not bytes; encode them first') if !utf8::downgrade($bytes, 1);
    return bless [int $type, $bytes], $class;
}

sub type { my ($self) = @_; return $self->[0] }
sub value { my ($self) = @_; return $self->[1] }

1;

__END__

=encoding utf8

=head1 NAME

Grape::Ext - an extension of msgpack that Grape does not know

=head1 SYNOPSIS

    my $ext = $event->data;
    $event->emit(out => Grape::Ext->new($ext->type, $ext->value));

=head1 DESCRIPTION

Programs may put values of their own into msgpack: a number and bytes. Grape hands them on as they are.

=head1 METHODS

=head2 new(TYPE, BYTES)

Dies if there is a character over 255 in the bytes.

=head2 type

-128 to 127. -1 is a time, for which there is L<Grape::Time>.

=head2 value

The bytes.

=cut
