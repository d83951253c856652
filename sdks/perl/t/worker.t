#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use FindBin ();
use List::Util qw(sum);
use lib "$FindBin::Bin/lib";
use Time::HiRes qw(sleep time);
use Adapter ();

binmode Test::More->builder->$_, ':encoding(UTF-8)' for qw(output failure_output);

subtest 'hello' => sub {
    my $worker = Adapter->start(<<'PERL', config => '{"a":{"b":"é"}}', words => ['--more', 'words']);
$worker->slot(a => { node => 'A', states => ['x', 'y'], emits => ['b', 'c'], retries => '2', backoff => 0.5, backoff_max => 3, timeout => 5, on_fail => 'stop', ordered => 0, rate => '90/min', burst => '3' }, sub { });
$worker->slot(b => { node => 'A', emits => 'c' }, sub { my ($e) = @_; $e->emit(a => $worker->config->{a}{b}) });
$worker->slot(c => { node => 'B', states => { s => 60, t => undef } }, sub { });
PERL
    my $hello = $worker->begin;
    is_deeply([@{$hello}[0, 1, 2, 3, 5]], [32, 1, $worker->{pid}, 'perl', [qw(base timers calls peers objects logs)]], 'who it is');
    my $topology = $hello->[4];
    is_deeply($topology->{nodes}, [{ name => 'A', states => [{ name => 'x' }, { name => 'y' }] },
        { name => 'B', states => [{ name => 's', ttl => 60 }, { name => 't' }] }], 'its nodes');
    my ($first, $second) = @{ $topology->{slots} };
    ok(!delete $first->{ordered}, 'it is not ordered');
    is_deeply($first, { event => 'a', node => 'A', where => 'nodes.pl:1', emits => ['b', 'c'], retries => 2, backoff => 0.5, backoff_max => 3, timeout => 5, on_fail => 'stop', rate => 1.5, burst => 3 }, 'a slot');
    is_deeply($second, { event => 'b', node => 'A', where => 'nodes.pl:2', emits => ['c'] }, 'what was not said is left out');
    is($worker->one(A => (names => 'b'))->[2][2][0], "é", 'its configuration');
    is($worker->drain, 0, 'Drain ends it');
};

subtest 'declarations' => sub {
    my %wrong = (
        "slot('a')" => qr/slot\(EVENT/,
        "slot(a => {}, sub { })" => qr/node: a name is needed.* nodes[.]pl line 1/,
        "slot('', { node => 'A' }, sub { })" => qr/a name is needed/,
        "slot(a => { node => 'A', retry => 1 }, sub { })" => qr/no option 'retry'; there are backoff/,
        "slot(a => { node => 'A', retries => 'x' }, sub { })" => qr/'x' is no number/,
        "slot(a => { node => 'A', rate => '5/fortnight' }, sub { })" => qr{slot 'a': rate: a rate is events a second, or text such as '100/s', '20/min' or '500/h', not '5/fortnight'},
        "slot(a => { node => 'A', rate => 0 }, sub { })" => qr/a rate is events a second/,
        "slot(a => { node => 'A', rate => 'nan/s' }, sub { })" => qr/a rate is events a second/,
        "slot(a => { node => 'A', burst => 3 }, sub { })" => qr/burst => 3 belongs to a rate, and there is none/,
        "slot(a => { node => 'A', rate => 2.5, burst => 0 }, sub { })" => qr/burst is a whole number from 1 to 1000000, not '0'/,
        "slot(a => { node => 'A', states => { s => 0 } }, sub { })" => qr/ttl/,
        "slot(a => { node => 'A', states => [''] }, sub { })" => qr/a name is needed/,
        "slot(a => { node => 'A', states => ['s'] }, sub { })->slot(b => { node => 'A', states => ['t'] }, sub { })" => qr/other states/,
        "slot(a => { node => 'A' }, sub { })->slot(a => { node => 'A' }, sub { })" => qr/listens to 'a' already/,
    );
    for my $code (sort keys %wrong) {
        my $worker = Adapter->start("\$worker->$code;");
        is($worker->hear, undef, "$code: no Hello");
        isnt($worker->ended, 0, 'it ends');
        like($worker->errors, $wrong{$code}, 'and says why');
    }
};

subtest 'failures' => sub {
    my $worker = Adapter->start(<<'PERL');
package Odd { use overload '""' => sub { die "worse\n" }, fallback => 1 }
package Late { sub new { bless { text => 'late' } } }
sub inner { my ($how) = @_;
    eval { die "caught\n" };
    my %what = (text => "text\n", place => 'place', hash => {}, late => Late->new, odd => bless({}, 'Odd'), bytes => "\xff\xfe\n", coded => "\xc3\xa9\n",
        wide => "\x{65e5}\n", long => 'x' x 20_000, failure => Grape::Failure->new(kind => 'mine', text => 'said'),
        bare => Grape::Failure->new(text => 'said'), surrogate => "a\x{d800}\n");
    die $what{$how};
}
my %do = (
    fail => sub { my ($e) = @_; $e->emit(out => 1); inner($e->data) },
    next => sub { my ($e) = @_; no warnings; next if $e->data; $e->emit(out => 1) },
    quiet => sub { my ($e) = @_; local $SIG{__DIE__} = 'DEFAULT'; die "quiet\n" },
    out => sub { my ($e) = @_; $e->emit(nowhere => 1) },
);
$worker->slot($_ => { node => 'A' }, $do{$_}) for sort keys %do;
PERL
    $worker->begin;
    my $fail = sub {
        my ($how) = @_;
        my ($ran) = $worker->run(A => (names => 'fail', data => [$how, 'never']));
        is_deeply([@{$ran}[1, 2, 3, 4]], [1, [[], [], [], undef, undef], [], []], "$how: ends the run, without effects");
        return @{ $ran->[5] };
    };
    my ($index, $kind, $text, $trace) = $fail->('text');
    is_deeply([$index, $kind, $text], [0, 'die', 'text'], 'a text');
    is($trace, "text\n    at nodes.pl line 8 in main::inner\n    at nodes.pl line 11", 'where, in the own code only');
    is_deeply([($fail->('failure'))[1, 2]], ['mine', 'said'], 'Grape::Failure');
    is_deeply([($fail->('bare'))[1, 2]], ['error', 'said'], 'without a kind');
    like(($fail->('place'))[2], qr/\Aplace at nodes[.]pl line 8[.]\z/, 'Perl says the place');
    like(join('|', ($fail->('hash'))[1, 2]), qr/\AHASH\|HASH\(/, 'a reference');
    is(($fail->('late'))[1], 'Late', 'an object: its class');
    is_deeply([($fail->('odd'))[1, 2]], ['Odd', 'an error that cannot be told as text'], 'one that cannot be text');
    like(($fail->('odd'))[3], qr/nodes[.]pl line 8 in/, 'its place');
    is(($fail->('bytes'))[2], "\xff\xfe", 'bytes that are no UTF-8 are sent as text');
    is(($fail->('coded'))[2], "é", 'UTF-8 that was not decoded');
    is(($fail->('wide'))[2], "日", 'wide characters');
    is(($fail->('surrogate'))[2], 'a?', 'what no text may have');
    is(length(($fail->('long'))[2]), 16_000, 'a long one is cut');

    my ($ran) = $worker->run(A => (names => 'next', data => [0, 1, 0]));
    is_deeply([$ran->[1], $ran->[2][2], @{ $ran->[5] }[0, 1]], [2, [1], 1, 'die'], '`next` does not leave the run');
    like($ran->[5][2], qr/left by next/, 'it is told');
    ($ran) = $worker->run(A => (names => 'quiet'));
    is_deeply($ran->[5], [0, 'die', 'quiet', 'quiet'], 'no trace of another error');
    ($ran) = $worker->run(A => (names => 'out'));
    is($ran->[5][1], 'unknown-event', 'misuse');
    like($ran->[5][3], qr/\n    at nodes[.]pl line 14\z/, 'is where it was used');
    ($ran) = $worker->run(A => (names => ['next', 'fail', 'next'], data => [0, 'text', 0]));
    is_deeply([$ran->[1], $ran->[5][0]], [2, 1], 'the index of the failed one');
    is($worker->drain, 0, 'it ends');
};

subtest 'it hands in' => sub {
    my $worker = Adapter->start(<<'PERL');
use Time::HiRes qw(sleep);
$worker->slot(slow => { node => 'A', states => ['n'] }, sub { my ($e) = @_; sleep $e->data; $e->state->{n}++; $e->emit(out => 1); $e->reply(1); die "no\n" if $e->data == 0.01 });
$worker->slot(large => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => 'x' x 1_000_000) });
$worker->slot(alive => { node => 'A' }, sub { my ($e) = @_; $e->progress for 1 .. 3; $e->emit(out => 1) });
PERL
    $worker->begin;
    my @answers = $worker->run(A => (names => 'slow', keys => [('k') x 8], data => [(0.4) x 7, 0.01]));
    my $told = join ', ', map { $_->[1] } @answers;
    ok(@answers >= 3 && @answers <= 5, "about once a second: $told");
    is(sum(map { $_->[1] } @answers), 8, 'each event once');
    is_deeply([map { @{ $_->[2][0] } } @answers], [0 .. 6], 'indexes count from the beginning of the run');
    is_deeply([map { map { $_->[0] } @{ $_->[4] } } @answers], [0 .. 6], 'of replies too');
    my @counts = map { $_->[1]{n} } map { @{ $_->[3] } } @answers;
    is($counts[-1], 7, 'states go on');
    is_deeply([sort { $a <=> $b } @counts], \@counts, 'and grow');
    is($answers[-1][5][0], 7, 'the failed one at its place');
    is_deeply([grep { defined $_->[5] } @answers[0 .. $#answers - 1]], [], 'in the last one only');
    @answers = $worker->run(A => (names => 'large', count => 10));
    cmp_ok(scalar @answers, '>=', 2, 'when it is large');
    is(scalar(map { @{ $_->[2][2] } } @answers), 10, 'all is there');

    $worker->say_to($Adapter::TAG{run}, 'A', 1, ['alive']);
    is_deeply([map { $_->[0] } map { $worker->hear } 1 .. 4], [36, 36, 36, 39], 'Beat from progress');
    is($worker->drain, 0, 'it ends');
};

subtest 'large and small pieces' => sub {
    my $worker = Adapter->start('$worker->slot(a => { node => "A" }, sub { my ($e) = @_; $e->emit(out => length $e->data) });');
    $worker->begin;
    my $since = time;
    is($worker->one(A => (names => 'a', data => ['x' x 30_000_000]))->[2][2][0], 30_000_000, '30 MB');
    cmp_ok(time - $since, '<', 10, 'are read quickly');
    my $packed = Grape::MsgPack::encode([7, 'A', 2, ['a'], undef, ['1', '22']]);
    my $frame = pack('V', length $packed) . $packed;
    for my $byte (split //, $frame) {
        $worker->send_bytes($byte);
        sleep 0.001;
    }
    is_deeply($worker->hear->[2][2], [1, 2], 'byte by byte');
    $worker->send_bytes($frame . $frame);
    is_deeply([map { $worker->hear->[2][2] } 1, 2], [[1, 2], [1, 2]], 'two at once');
    is($worker->drain, 0, 'it ends');
};

subtest 'signals' => sub {
    my $worker = Adapter->start(<<'PERL');
use Time::HiRes qw(sleep);
$SIG{USR1} = sub { };
$worker->slot(a => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => 'x' x 3_000_000) for 1 .. 3 });
$worker->slot(pipe => { node => 'A' }, sub { my ($e) = @_; open my $p, '|-', 'true' or die; sleep 0.2; print {$p} 'x' x 100_000; close $p; $e->emit(out => 1) });
$worker->slot(yes => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => scalar `trap '' HUP; (yes; echo \$? >&2) 2>/dev/null | head -1; grep SigIgn /proc/self/status`) });
PERL
    $worker->begin;
    $worker->say_to($Adapter::TAG{run}, 'A', 1, ['a']);
    for (1 .. 50) { kill USR1 => $worker->{pid}; sleep 0.005 }
    my $ran = $worker->hear;
    is(scalar @{ $ran->[2][2] }, 3, 'a signal does not break a frame that is written');
    for (1 .. 20) { kill USR1 => $worker->{pid}; sleep 0.005 }
    is($worker->one(A => (names => 'pipe'))->[2][2][0], 1, 'a pipe that nobody reads does not kill it');
    kill INT => $worker->{pid};
    my $said = $worker->one(A => (names => 'yes'))->[2][2][0];
    my ($ignored) = $said =~ /SigIgn:\s*(\w+)/;
    ok(!(hex(substr $ignored, -4) & 1 << 12), 'programs that it starts die of SIGPIPE as usual');
    is($worker->drain, 0, 'Ctrl-C is not for it');
};

subtest 'what is printed' => sub {
    my $worker = Adapter->start(<<'PERL');
use utf8; use feature 'say';
my %do = (
    print => sub { print "one\ntwo ", 'more', "\n"; print 'be'; print "gun\n"; printf "%s-%d\n", 'a', 5; say 'said'; say STDOUT 'x', 'y' },
    separators => sub { local ($,, $\) = ('-', "!\n"); print 'a', 'b'; printf "%s\n", 'c'; },
    wide => sub { print "日\n", "é\n"; my $latin = "\xe9\n"; utf8::downgrade($latin); print $latin; my $bytes = "é\n"; utf8::encode($bytes); print $bytes },
    half => sub { print 'half' },
    syswrite => sub { my ($e) = @_; $e->emit(out => [syswrite(STDOUT, "abcdef\n", 4, 3), syswrite(STDOUT, "all\n")]) },
    undef => sub { no warnings; print undef, "u\n" },
    program => sub { system 'echo program' },
    log => sub { my ($e) = @_; local ($,, $\) = ('-', '!'); $e->log(info => "日\nzwei"); $e->log(error => undef) },
);
my %log = (bytes => sub { my $text = shift; utf8::encode($text); $text }, latin => sub { "\xe9" }, text => sub { shift });
$worker->slot("log $_" => { node => 'größe' }, do { my $of = $log{$_}; sub { my ($e) = @_; $e->log(info => $of->("é")) } }) for sort keys %log;
$worker->slot(layer => { node => 'A' }, sub { my ($e) = @_; binmode STDERR, ':encoding(UTF-8)'; $e->log(info => "é"); binmode STDERR });
$worker->slot($_ => { node => 'A' }, $do{$_}) for sort keys %do;
$worker->on_setup(sub { print "setup\n" })->on_teardown(sub { print "teardown\n"; printf '%s', 'end' });
$worker->slot("print $_" => { node => 'größe' }, do { my $of = $log{$_}; sub { print $of->("é"), "\n" } }) for sort keys %log;
binmode STDOUT, ':encoding(UTF-8)';
print "loading\n";
PERL
    $worker->begin;
    my $before = sub { my $length = length $worker->printed; $worker->run($_[1] || 'A', names => $_[0]); my $all = substr $worker->printed, $length; utf8::decode($all); return $all };
    my $mark = "\x1e\x1eA\x1e";
    is($before->('print'), join(q{}, map { "$mark$_\n" } 'one', 'two more', 'begun', 'a-5', 'said', 'xy'), 'print, printf, say');
    is($before->('separators'), "${mark}a-b!\n${mark}c\n", 'separators, not with printf');
    is($before->('wide'), join(q{}, map { "$mark$_\n" } "日", "é", "é", "é"), 'characters of all kinds');
    is($before->("print $_", 'größe'), "\x1e\x1egröße\x1eé\n", "$_ of a node that is not ASCII") for qw(bytes latin text);
    is($before->('half'), "${mark}half\n", 'a line without an end is ended');
    is($before->('syswrite'), "${mark}def\n${mark}all\n", 'syswrite');
    is_deeply($worker->one(A => (names => 'syswrite'))->[2][2][0], [4, 4], 'what it returns');
    is($before->('undef'), "${mark}u\n", 'undef');
    is($before->('program'), "program\n", 'another program');
    $worker->run(A => (names => 'log'));
    $worker->run('größe' => (names => "log $_")) for qw(bytes latin text);
    $worker->run(A => (names => 'layer'));
    is($worker->drain, 0, 'it ends');
    my $out = $worker->printed;
    like($out, qr/\Aloading\nsetup\n\x1e/, 'without a node outside of handlers');
    like($out, qr/\nteardown\nend\n\z/, 'until the end');
    my $log = $worker->errors;
    utf8::decode($log);
    is_deeply([split /\n/, $log], ["\x1einfo\x1eA\x1fe.0\x1e日 zwei", "\x1eerror\x1eA\x1fe.0\x1e", ("\x1einfo\x1egröße\x1fe.0\x1eé") x 3, "\x1einfo\x1eA\x1fe.0\x1eé"], 'log');
};

subtest 'the end' => sub {
    my $code = '$worker->on_teardown(sub { print "teardown\n" }); $worker->slot(a => { node => "A" }, sub { });';
    my $worker = Adapter->start($code);
    $worker->begin;
    $worker->hang_up;
    is($worker->ended, 0, 'of the stream');
    is($worker->printed, "teardown\n", 'tears down');
    $worker = Adapter->start($code);
    is($worker->hear->[0], 32, 'Hello');
    is($worker->drain, 0, 'Drain without Welcome');
    for my $bytes ("\xff\xff\xff\xff", pack('V', 1) . "\xc1", pack('V', 2) . "\x92\x07", pack('V', 1) . "\x05", pack('V', 1) . "\x90",
        pack('V', 2) . "\x91\x63", pack('V', 2) . "\x91\xa1", pack('V', 3) . "\x91\xa1\x61", pack('V', 5) . "\x94\x07\xa1\x5a\x01") {
        $worker = Adapter->start($code);
        $worker->begin;
        $worker->send_bytes($bytes);
        like($worker->ended, qr/\A[1-9]\d*\z/, 'of a broken frame: ' . unpack 'H*', $bytes);
        isnt($worker->errors, q{}, 'says why');
    }
    $worker = Adapter->start($code);
    $worker->hear;
    $worker->say_to(1, 2, 'perl');
    isnt($worker->ended, 0, 'another version');
    like($worker->errors, qr/protocol 2/, 'says why');
    $worker = Adapter->start($code);
    $worker->begin;
    $worker->send_bytes(pack('V', 100) . "\x91");
    $worker->hang_up;
    is($worker->ended, 0, 'in a frame');
    $worker = Adapter->start($code, parent => 1);
    is($worker->ended, 0, 'of its parent, before it began');
    $worker = Adapter->start($code, parent => 0);
    $worker->begin;
    is($worker->drain, 0, 'a jail sees to the parent');
};

subtest 'setup' => sub {
    my $worker = Adapter->start(<<'PERL');
$worker->slot(a => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => $main::found) });
$worker->on_setup(sub { $main::found = 'there' })->on_teardown(sub { die "teardown\n" });
PERL
    $worker->begin;
    is_deeply($worker->{answer}, [36], 'Beat: it is ready');
    is($worker->one(A => (names => 'a'))->[2][2][0], 'there', 'runs before the first event');
    isnt($worker->drain, 0, 'a teardown that dies is seen');
    $worker = Adapter->start("\$worker->on_setup(sub { die \"no \\xff\\n\" });");
    $worker->begin;
    my $refusal = $worker->{answer};
    is_deeply([@{$refusal}[0, 1]], [33, 'start'], 'one that dies is a Refusal');
    like($refusal->[2], qr/\Asetup: no \xff\n.*nodes[.]pl line 1/s, 'that says why');
    is($worker->ended, 1, 'and ends it');
};

subtest 'by hand' => sub {
    my $said = qx{$^X -Ilib -MGrape::Worker -e 'exit Grape::Worker->new->run' 2>&1};
    is($? >> 8, 2, 'usage');
    like($said, qr/runtime="perl"/, 'says how');
};

done_testing;
