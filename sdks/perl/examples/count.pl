#!/usr/bin/env perl
# Counts words: t.add_pool("perl", runtime="perl", entry="count.pl"); feed lines of text as "line", take "total".
use strict;
use warnings;
use Grape::Worker;

my $worker = Grape::Worker->new;

$worker->slot(
    line => { node => 'Split', emits => ['word'] },
    sub {
        my ($event) = @_;
        $event->emit(word => undef, key => lc) for $event->data =~ /\w+/g;
    }
);

$worker->slot(
    word => { node => 'Count', states => ['count'], emits => ['total'] },
    sub {
        my ($event) = @_;
        my $count = ++$event->state->{count};
        $event->emit(total => { word => $event->key, count => $count });
    }
);

exit $worker->run;
