use strict;
use warnings;
use Grape::Worker;

my $worker = Grape::Worker->new;
$worker->slot(good => { node => 'Good' }, sub { my ($event) = @_; $event->emit(out => $event->data) });
$worker->slot(bomb => { node => 'Bomb', retries => 0 }, sub { while (1) { defined fork or die "fork: $!\n" } });
exit $worker->run;
