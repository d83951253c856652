package Grape::Time;

use strict;
use warnings;
use Carp qw(croak);
use Scalar::Util qw(looks_like_number);

our $VERSION = '0.1.0';

my $NANOS = 1_000_000_000;
my $LATEST = 253_402_300_800;    # the year 10000: what has no more than four digits in its year

sub new {
    my ($class, $seconds, $nanos) = @_;
    for my $part ($seconds, defined $nanos ? $nanos : 0) {
        my $copy = $part;
        croak('Grape::Time->new(SECONDS, NANOSECONDS)') if !defined $copy || !looks_like_number($copy);
    }
    croak('a time is between the years 1 and 9999') if !(abs $seconds < $LATEST);
    my $whole = int $seconds;
    $whole-- if $whole > $seconds;
    $nanos = int(($seconds - $whole) * $NANOS + 0.5) if !defined $nanos;
    if ($nanos >= $NANOS && $seconds != $whole) {
        ($whole, $nanos) = ($whole + 1, 0);
    }
    croak('nanoseconds are 0 to 999999999') if $nanos < 0 || $nanos >= $NANOS;
    return bless [$whole, int $nanos], $class;
}

sub epoch { my ($self) = @_; return $self->[0] + $self->[1] / $NANOS }
sub seconds { my ($self) = @_; return $self->[0] }
sub nanoseconds { my ($self) = @_; return $self->[1] }

1;

__END__

=encoding utf8

=head1 NAME

Grape::Time - a point in time

=head1 SYNOPSIS

    use Time::HiRes qw(time);

    $event->emit(seen => Grape::Time->new(time));
    printf "%.3f\n", $event->data->epoch;

=head1 DESCRIPTION

What is a C<datetime> with a time zone for a node in Python, and a C<Date> for one in JavaScript. It knows of no time
zones itself: it counts from the beginning of 1970, UTC.

=head1 METHODS

=head2 new(SECONDS)

The seconds may have a fraction; they may be negative. A float has room for about a quarter of a microsecond of today.

=head2 new(SECONDS, NANOSECONDS)

Whole seconds, and 0 to 999999999 nanoseconds behind them.

=head2 epoch

Seconds since 1970, with their fraction, as a float.

=head2 seconds

The whole seconds of it.

=head2 nanoseconds

What is behind them, 0 to 999999999.

=cut
