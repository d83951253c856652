#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use FindBin ();
use lib "$FindBin::Bin/lib";
use Adapter ();

my $worker = Adapter->start(<<'PERL');
$worker->slot(to => { node => 'To' }, sub { my ($e) = @_; my ($method, @words) = @{ $e->data }; $e->$method(@words) });
PERL
$worker->begin(peers => { shop => ['sold', 'größe'], stock => undef });

# What an event did, or its failure.
sub ran { my (@words) = @_; return $worker->one(To => (names => 'to', keys => ['k'], data => [\@words])) }
sub failed { my (@words) = @_; return [@{ ran(@words)->[5] }[1, 2]] }

subtest 'what is emitted to other apps' => sub {
    is_deeply(ran(emit => 'shop@sold', 1)->[2], [[0], ['shop@sold'], [1], undef, undef], 'a slot of it');
    is_deeply(ran(emit => 'shop@größe', 1, key => 'l', delay => 2)->[2], [[0], ['shop@größe'], [1], ['l'], [2_000_000]], 'with a key, and later');
    is_deeply(ran(emit => 'stock@any')->[2][1], ['stock@any'], 'an app that has not said what it has');
    my $asked = ran(call => 'shop@sold', 'tea', timeout => 5)->[5][4];
    is_deeply([@{$asked}[0, 2, 3]], ['shop@sold', 5_000_000, 'tea'], 'a call');
};

subtest 'what leads nowhere' => sub {
    my @wrong = (
        [['emit', 'shoop@sold'], qr/\Ait emits 'shoop\@sold', but no app 'shoop' is installed here \(no-such-app\); did you mean 'shop'\?/],
        [['emit', 'else@sold'], qr/no-such-app\); known are 'shop', 'stock'\z/],
        [['emit', 'shop@slod'], qr/app 'shop' has no slot 'slod'; did you mean 'sold'\?/],
        [['call', 'shop@lost'], qr/\Ait calls 'shop\@lost', but app 'shop' has no slot 'lost'; known are 'größe', 'sold'\z/],
        [['emit', 'here@to'], qr/an event of the own app is written without it: 'to'/],
        [['emit', 'stock@'], qr/1 to 255 bytes of UTF-8, also behind the \@; this one has 0/],
        [['emit', 'stock@' . 'é' x 128], qr/this one has 256/],
        [['emit', '@sold'], qr/no app '' is installed/],
    );
    for my $case (@wrong) {
        my ($words, $text) = @{$case};
        my ($kind, $said) = @{ failed(@{$words}) };
        is($kind, 'unknown-event', "@{$words}");
        like($said, $text, 'its text');
    }
};

subtest 'they come and go' => sub {
    $worker->say_to($Adapter::TAG{other_apps}, { stock => ['taken'] });
    is_deeply(ran(emit => 'stock@taken')->[2][1], ['stock@taken'], 'what is there now');
    like(failed(emit => 'shop@sold')->[1], qr/no app 'shop'/, 'what has gone');
    like(failed(emit => 'stock@any')->[1], qr/no slot 'any'/, 'what is known now');
};

is($worker->drain, 0, 'it ends');
done_testing;
