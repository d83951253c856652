package Grape::Bytes;

use strict;
use warnings;
use Carp qw(croak);

our $VERSION = '0.1.0';

sub new {
    my ($class, $bytes) = @_;
    croak('Grape::Bytes->new(BYTES)') if !defined $bytes || ref $bytes;
    croak('these are characters over 255, not bytes; encode them first') if !utf8::downgrade($bytes, 1);
    return bless \$bytes, $class;
}

sub value { my ($self) = @_; return ${$self} }

1;

__END__

=encoding utf8

=head1 NAME

Grape::Bytes - says that bytes are bytes

=head1 SYNOPSIS

    $event->emit(picture => Grape::Bytes->new($png));

=head1 DESCRIPTION

Perl has one type for text and for bytes. Grape sends what can be read as UTF-8 as text, and the rest as bytes. What must
be bytes in any case, also if it happens to look like text, is put into a C<Grape::Bytes>. It comes back as a plain
scalar.

=head1 METHODS

=head2 new(BYTES)

Dies if there is a character over 255 in it.

=head2 value

The bytes.

=cut
