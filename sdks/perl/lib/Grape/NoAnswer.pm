package Grape::NoAnswer;

use strict;
use warnings;
use parent 'Grape::Failure';

our $VERSION = '0.1.0';

sub kind { return 'no-answer' }

1;

__END__

=encoding utf8

=head1 NAME

Grape::NoAnswer - nobody answered a call in time

=head1 DESCRIPTION

A L<Grape::Failure> of the kind C<no-answer>.

=cut
