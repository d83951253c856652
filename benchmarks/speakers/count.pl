use strict;
use warnings;
use Grape::Worker;

my $worker = Grape::Worker->new;
$worker->slot(word => { node => 'Count', states => ['seen'] }, sub { my ($event) = @_; $event->state->{seen}++ });
exit $worker->run;
