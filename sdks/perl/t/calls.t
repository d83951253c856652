#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use FindBin ();
use lib "$FindBin::Bin/lib";
use Adapter ();
use Grape::Bytes ();
use Grape::MsgPack ();

my $worker = Adapter->start(<<'PERL');
my %do = (
    wrong => sub { my ($e) = @_; my ($method, @words) = @{ $e->data }; $e->$method(@words) },
    ask => sub { my ($e) = @_; $e->emit(out => 'undone'); $e->emit(out => [map { $e->call(price => $_, timeout => 2) } @{ $e->data }]) },
    hash => sub { my ($e) = @_; my %same = map { ("k$_" => [$_, { a => 1, b => 2 }]) } 1 .. 20; $e->emit(out => $e->call(price => \%same)) },
    wrap => sub { my ($e) = @_; eval { $e->call(price => 1); 1 } or die "wrapped: $@" },
    again => sub { my ($e) = @_; eval { $e->call(price => 1) }; $e->call(price => 2) },
    failed => sub { my ($e) = @_; eval { $e->call(price => 1); 1 } or $e->emit(out => [ref $@, map { $@->$_ } qw(kind text code reason node)]) },
    price => sub { },
);
$worker->slot($_ => { node => 'All' }, $do{$_}) for sort keys %do;
PERL
$worker->begin(max_event => 3_000);

# The failure of one event, or what it did.
sub ran {
    my ($name, $data, %what) = @_;
    return $worker->one(All => (names => $name, keys => ['k'], data => [$data], %what));
}

# What an event has called: [event, digest, timeout, data, key].
sub left { my ($ran) = @_; return $ran->[5][4] }

subtest 'a call' => sub {
    my $ran = ran(ask => ['tea']);
    is_deeply([@{ $ran->[5] }[0 .. 3]], [0, q{}, q{}, q{}], 'it has not failed');
    is_deeply($ran->[2][2], [], 'and has no effects');
    my ($event, $digest, $timeout, $data, $key) = @{ left($ran) };
    is_deeply([$event, $timeout, $data, $key], ['price', 2_000_000, 'tea', undef], 'what it asks');
    is(length $digest, 8, 'a digest');
    my $answer = [Grape::Bytes->new($digest), Grape::Bytes->new(Grape::MsgPack::encode({ n => 3 })), Data::MessagePack::false()];
    my $next = ran(ask => ['tea'], answers => [$answer]);
    is_deeply($next->[2][2], ['undone', [{ n => 3 }]], 'with the answer it runs from its beginning');
    my $second = left(ran(ask => ['tea', 'milk'], answers => [$answer]));
    is($second->[3], 'milk', 'the next call');
    like(ran(ask => ['coffee'], answers => [$answer])->[5][2], qr/call 1 was another one/, 'another one than before');
};

subtest 'events before it are done, those behind it are not begun' => sub {
    my ($ran) = $worker->run(All => (names => ['price', 'ask', 'price'], data => [1, [2], 3]));
    is_deeply([$ran->[1], $ran->[5][0]], [2, 1], 'two of three');
};

subtest 'hashes have no order' => sub {
    my $digest = left(ran('hash'))->[1];
    is(left(ran('hash'))->[1], $digest, 'the same again') for 1 .. 5;
};

subtest 'who catches it is told' => sub {
    like(ran('wrap')->[5][2], qr/caught what ends its handler while it waits for the answer to 'price'/, 'another error');
    is(left(ran('again'))->[3], 1, 'a second call leaves it again by the first');
};

subtest 'errors' => sub {
    my $answer = sub { my (%error) = @_; return [Grape::Bytes->new(left(ran(ask => [1]))->[1]), Grape::Bytes->new(Grape::MsgPack::encode({ error => {%error} })), Data::MessagePack::true()] };
    my $failed = ran(failed => undef, answers => [$answer->(code => 'bad', text => 'it is', node => 'P')]);
    is_deeply($failed->[2][2][0], ['Grape::CallFailed', 'call-failed', "node 'P' failed: it is", 'bad', 'it is', 'P'], 'who should have answered failed');
    my $late = ran(ask => [1], answers => [$answer->(code => 'no-answer', text => 'nobody', node => q{})]);
    is_deeply([@{ $late->[5] }[1, 2]], ['no-answer', 'nobody'], 'nobody answered');
};

subtest 'what cannot be' => sub {
    my @wrong = (
        [['call', 'prize'], 'unknown-event', qr/it calls 'prize', neither/],
        [['call', 'out'], 'unknown-event', qr/nothing answers there/],
        [['call', 'price', 1, timeout => 0], 'usage', qr/takes longer/],
        [['call', 'price', 1, timeout => 'x'], 'usage', qr/seconds/],
        [['call', 'price', 1, key => q{}], 'bad-key', qr/./],
        [['call', 'price', 1, delay => 1], 'usage', qr/not delay/],
        [['emit', 'out', 1, timer => 't'], 'usage', qr/names an emit with delay/],
        [['emit', 'out', 1, timer => q{}, delay => 1], 'usage', qr/1 to 255 bytes/],
        [['cancel_timer'], 'usage', qr/is text/],
        [['cancel_timer', 'é' x 128], 'usage', qr/this one has 256/],
    );
    for my $case (@wrong) {
        my ($words, $kind, $text) = @{$case};
        my $failed = ran(wrong => $words)->[5];
        is($failed->[1], $kind, join q{ }, grep { defined } @{$words}[0, 1]);
        like($failed->[2], $text, 'its text');
        like($failed->[3], qr/nodes[.]pl line 2/, 'its place');
    }
    is(ran(wrong => ['cancel_timer', 't'], keys => undef)->[5][1], 'no-key', 'without a key');
};

subtest 'timers by name' => sub {
    my $emits = $worker->one(All => (names => 'wrong', keys => ['k', 'k', 'k'],
        data => [['emit', 'out', 1, delay => 2, timer => 'é'], ['cancel_timer', 't'], ['emit', 'out', 2]]))->[2];
    is_deeply($emits, [[0, 1, 2], ['out', q{}, 'out'], [1, undef, 2], undef, [2_000_000, -1, -1], ['é', 't', undef]], 'as columns');
};

is($worker->drain, 0, 'it ends');
done_testing;
