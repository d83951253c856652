# Perl's part of the relay: count the runner, and hand over to C++.
use strict;
use warnings;
use Grape::Worker;

my $worker = Grape::Worker->new;
$worker->slot(
    perl => { node => 'Pearl', states => ['laps'], emits => ['cpp'] },
    sub {
        my ($event) = @_;
        my $laps = ++$event->state->{laps};
        $event->emit(cpp => { %{ $event->data }, perl => $laps });
    }
);
exit $worker->run;
