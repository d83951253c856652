#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use FindBin ();
use lib "$FindBin::Bin/lib";
use Adapter ();

binmode Test::More->builder->$_, ':encoding(UTF-8)' for qw(output failure_output);

my $worker = Adapter->start(<<'PERL');
use utf8;
our ($kept, $shared);
my %do = (
    fields => sub { my ($e) = @_; $e->emit(out => [map { $e->$_ } qw(name key data id attempt created)]) },
    echo => sub { my ($e) = @_; $e->emit(out => $e->data) },
    options => sub { my ($e) = @_; $e->emit(out => 1, @{ $e->data }) },
    twice => sub { my ($e) = @_; $e->emit(out => 1); $e->emit(out => 2, key => 'x'); $e->emit(echo => 3, delay => 1.5); $e->emit(out => 4, key => undef) },
    keys => sub { my ($e) = @_; my $n = 5; my $text = "n$n"; $e->emit(out => $n, key => $n); $e->emit(out => $text) },
    some => sub { my ($e) = @_; $e->emit(out => 'lost') ; $e->reply('lost'); $e->emit(out => 'lost', key => 'lost', delay => 1); die "no\n" if $e->data; $e->reply('ok') },
    reply => sub { my ($e) = @_; $e->reply('first', final => 0); $e->reply({ last => 1 }) },
    wrong => sub { my ($e) = @_; my ($method, @words) = @{ $e->data }; $e->$method(@words) },
    code => sub { my ($e) = @_; $e->emit(out => sub { }) },
    keep => sub { my ($e) = @_; $kept = $e; $e->state },
    kept => sub { my ($e) = @_; my $method = $e->data; $kept->$method('out', $method eq 'reply' ? () : 1) },
    read => sub { my ($e) = @_; $e->emit(out => [$kept->name, $kept->key, $kept->data]) },
    nothing => sub { my ($e) = @_; $e->state },
    caught => sub { my ($e) = @_; eval { die "mine\n" }; $e->emit(out => 1); $e->emit(out => $@) },
    'größe' => sub { my ($e) = @_; $e->emit('größe' => 1); my $bytes = 'größe'; utf8::encode($bytes); $e->emit($bytes => 2) },
);
$worker->slot($_ => { node => 'All', states => ['a', 'b'] }, $do{$_}) for sort keys %do;
my %state = (
    count => sub { my ($e) = @_; $e->emit(out => ++$e->state->{a}) },
    set => sub { my ($e) = @_; my ($name, $value) = @{ $e->data }; $e->state->{$name} = $value; die "no\n" if $e->data->[2] },
    get => sub { my ($e) = @_; $e->emit(out => $e->state->{a}) },
    delete => sub { my ($e) = @_; delete $e->state->{a} },
    deep => sub { my ($e) = @_; push @{ $e->state->{a}{list} }, $e->data; die "no\n" if $e->data eq 'bad' },
    number => sub { my ($e) = @_; my $n = $e->state->{a}; my $text = "is $n"; $e->state->{b} = 7 if $text eq 'is 7' },
    share => sub { my ($e) = @_; $e->state->{a} = $shared = [1] },
    change => sub { my ($e) = @_; push @{$shared}, 2 },
    code => sub { my ($e) = @_; $e->state->{a} = sub { } },
    long => sub { my ($e) = @_; $e->state->{a} = 'x' x $e->data },
    half => sub { my ($e) = @_; $e->state->{a} += 1e-13 },
    each => sub { my ($e) = @_; $_++ for values %{ $e->state } },
    all => sub { my ($e) = @_; %{ $e->state } = (a => 5) },
    hold => sub { my ($e) = @_; $shared = $e->state; $shared->{a} = 1 },
    held => sub { my ($e) = @_; $shared->{a} = 'late' },
);
$worker->slot("s_$_" => { node => 'State', states => ['a', 'b'] }, $state{$_}) for sort keys %state;
$worker->slot("t_$_" => { node => 'Ttl', states => { a => 60, b => undef } }, $state{$_}) for sort keys %state;
$worker->slot(plain => { node => 'Plain' }, sub { my ($e) = @_; $e->state->{a} = 1 });
PERL
$worker->begin(max_event => 3_000);

sub ran {
    my ($node, $name, %what) = @_;
    my @answers = $worker->run($node, names => $name, %what);
    is(scalar @answers, 1, "$name: one answer") or diag $worker->errors;
    my (undef, $events, $emits, $changes, $replies, $failed) = @{ $answers[0] };
    return { events => $events, emits => $emits, changes => { map { $_->[0] => [@{$_}[1, 2]] } @{$changes} }, replies => $replies, failed => $failed };
}
sub all { my ($name, %what) = @_; return ran(All => $name, %what) }
sub state { my ($name, %what) = @_; return ran(State => "s_$name", %what) }    ## no critic

sub fails {
    my ($ran, $kind, $pattern, $name) = @_;
    is($ran->{failed}[1], $kind, "$name: its kind");
    like($ran->{failed}[2], $pattern, "$name: its text");
    return is_deeply([$ran->{emits}[2], $ran->{changes}, $ran->{replies}], [[], {}, []], "$name: no effects");
}

subtest 'what an event has' => sub {
    my $ran = all('fields', keys => ['k', "é"], data => [{ a => 1 }, undef], prefix => 'b.', first => 7, created => 1_500_000, attempt => 2);
    is_deeply($ran->{emits}[2], [['fields', 'k', { a => 1 }, 'b.7', 2, 1.5], ['fields', "é", undef, 'b.8', 2, 1.5]], 'all of it');
    $ran = all('fields', count => 2, ids => ['x', 'y']);
    is_deeply([map { $_->[3] } @{ $ran->{emits}[2] }], ['x', 'y'], 'ids of their own');
    is($ran->{emits}[2][0][1], undef, 'no key');
    is_deeply(all(['fields', 'echo'], data => [1, 2])->{emits}[2], [['fields', undef, 1, 'e.0', 1, 0], 2], 'several names');
};

subtest 'emits' => sub {
    my $emits = all('twice', keys => ['k', 'l'])->{emits};
    is_deeply($emits->[0], [0, 0, 0, 0, 1, 1, 1, 1], 'origins');
    is_deeply($emits->[1], [('out', 'out', 'echo', 'out') x 2], 'names');
    is_deeply($emits->[2], [(1 .. 4) x 2], 'data');
    is_deeply([map { defined $_ && !$_ ? 'none' : $_ } @{ $emits->[3] }], [(undef, 'x', undef, 'none') x 2], 'keys');
    is_deeply($emits->[4], [(-1, -1, 1_500_000, -1) x 2], 'delays');
    is_deeply(all('echo', data => [1, 'a'])->{emits}, [[0, 1], ['out'], [1, 'a'], undef, undef], 'one name for all, and nothing else');
    is_deeply(all('nothing', keys => ['k'])->{emits}, [[], [], [], undef, undef], 'none');
    is_deeply(all('keys')->{emits}, [[0, 0], ['out'], [5, 'n5'], ['5', undef], undef], 'a number as a key is text');
    is_deeply(all("größe")->{emits}[1], ["größe"], 'names that are not ASCII');
    is_deeply(all('caught')->{emits}[2], [1, "mine\n"], '$@ of the handler is kept');
};

subtest 'wrong emits' => sub {
    fails(all('wrong', data => [['emit', 'nowhere', 1]]), 'unknown-event', qr/'nowhere'.*known are.*'out'/, 'a name');
    fails(all('wrong', data => [['emit', $_, 1]]), 'unknown-event', qr/did you mean 'out'/, "nearly: $_") for qw(uot ou outt oot);
    fails(all('wrong', data => [['emit', 'Out', 1]]), 'unknown-event', qr/did you mean 'out'/, 'nearly');
    fails(all('wrong', data => [['emit', undef, 1]]), 'unknown-event', qr/''/, 'none');
    fails(all('options', data => [['key', $_]]), 'bad-key', qr/1 to 4096 bytes/, 'a key') for q{}, 'x' x 4_097, "\xff", "é" x 2_049;
    is(all('options', data => [['key', $_]])->{failed}, undef, 'it may be so long') for 'x' x 4_096, "é" x 2_048;
    fails(all('options', data => [['delay', $_]]), 'usage', qr/seconds/, 'a delay') for -1, 'soon', 1e13, 9**9**9, -sin 9**9**9;
    is_deeply(all('options', data => [['delay', 4e12]])->{emits}[4], [4_000_000_000_000_000_000], 'the longest');
    is_deeply(all('options', data => [['delay', 0]])->{emits}[4], [0], 'none at all');
    is(all('options', data => [['delay', undef]])->{emits}[4], undef, 'undef is none');
    fails(all('options', data => [['dely', 1]]), 'usage', qr/dely/, 'an option');
    fails(all('wrong', data => [['reply', 1, 'last', 1]]), 'usage', qr/final/, 'of a reply');
    fails(all('wrong', data => [['log', 'loud', 1]]), 'usage', qr/debug/, 'a level');
    fails(all('code'), 'bad-value', qr/CODE/, 'a value');
    is(all('echo', data => ['x' x 2_997])->{failed}, undef, 'as large as it may be');
    fails(all('echo', data => ['x' x 2_998]), 'too-large', qr/3001 bytes.*3000/, 'too large');
    like(all('wrong', data => [['nonsense']])->{failed}[2], qr/nonsense/, 'a method');
};

subtest 'undo' => sub {
    my $ran = all('some', data => [0, 1]);
    is_deeply($ran->{emits}, [[0, 0], ['out'], ['lost', 'lost'], [undef, 'lost'], [-1, 1_000_000]], 'emits of the one before stay');
    is_deeply([map { @{$_}[0, 1] } @{ $ran->{replies} }], [0, 'lost', 0, 'ok'], 'and its replies');
    is_deeply([$ran->{events}, $ran->{failed}[0]], [2, 1], 'two are finished');
    $ran = all('some', data => [1, 0]);
    is($ran->{events}, 1, 'what comes behind does not run');
    fails($ran, 'die', qr/\Ano\z/, 'alone');
    $ran = all(['echo', 'some'], data => [1, 1]);
    is_deeply($ran->{emits}, [[0], ['out'], [1], [undef], [-1]], 'what only the failed one had is not left behind');
};

subtest 'replies' => sub {
    my $replies = all('reply', count => 2)->{replies};
    is_deeply([map { [$_->[0], $_->[1], $_->[2] ? 1 : 0] } @{$replies}],
        [[0, 'first', 0], [0, { last => 1 }, 1], [1, 'first', 0], [1, { last => 1 }, 1]], 'in their order');
};

subtest 'state' => sub {
    my $ran = state('count', keys => ['k', 'l', 'k'], states => { k => { a => 5 } });
    is_deeply($ran->{emits}[2], [6, 1, 7], 'events see what those before have stored');
    is_deeply($ran->{changes}, { k => [{ a => 7 }, []], l => [{ a => 1 }, []] }, 'a key once');
    is_deeply(state('get', keys => ['k'], states => { k => { a => 5 } })->{changes}, {}, 'reading changes nothing');
    is_deeply(state('set', keys => ['k'], data => [['a', 5]], states => { k => { a => 5 } })->{changes}, {}, 'nor does the same value');
    for my $case ([5, '5'], ['5', 5], [1.0, 1], [undef, q{}], [q{}, undef], [0, undef], [1, [1]], [[1], 1], [[1], [2]], ["é", 'e']) {
        my ($old, $new) = @{$case};
        is_deeply(state('set', keys => ['k'], data => [['a', $new]], states => { k => { a => $old } })->{changes},
            { k => [{ a => $new }, []] }, join ' to ', map { defined $_ ? explain $_ : 'undef' } $old, $new);
    }
    is_deeply(state('set', keys => ['k'], data => [['a', undef]])->{changes}, { k => [{ a => undef }, []] }, 'undef is a value');
    my $half = state('half', keys => ['k'], states => { k => { a => 0.3 } });
    is_deeply([keys %{ $half->{changes} }], ['k'], 'a float that differs behind what is printed');
    is_deeply(state('number', keys => ['k'], states => { k => { a => 7 } })->{changes}, { k => [{ b => 7 }, []] }, 'the others stay');
    is_deeply(state('set', keys => ["é日"], data => [['a', "ü"]])->{changes}, { "é日" => [{ a => "ü" }, []] }, 'keys that are not ASCII');
};

sub ttl { my ($name, %what) = @_; return ran(Ttl => ref $name ? $name : "t_$name", %what) }

subtest 'state with a ttl' => sub {
    my $stored = { k => { a => 5, b => 6 } };
    my $again = { k => [{ a => 5 }, []] };
    is_deeply(ttl('set', keys => ['k'], data => [['a', 5]], states => $stored)->{changes}, $again, 'the same value prolongs it');
    is_deeply(ttl('set', keys => ['k'], data => [['b', 6]], states => $stored)->{changes}, {}, 'not one without, of the same node');
    is_deeply(ttl('get', keys => ['k'], states => $stored)->{changes}, {}, 'nor does reading');
    is_deeply(ttl('count', keys => ['k', 'l', 'k'], states => { k => { a => 5 } })->{emits}[2], [6, 1, 7], 'it counts');
    is_deeply(ttl(['t_set', 't_get'], keys => ['k', 'k'], data => [['a', 5], undef], states => $stored)->{changes}, $again, 'one that only reads behind it');
    is_deeply(ttl(['t_set', 't_delete'], keys => ['k', 'k'], data => [['a', 5], undef], states => $stored)->{changes}, { k => [{}, ['a']] }, 'deleted');
    is_deeply(ttl(['t_delete', 't_set'], keys => ['k', 'k'], data => [undef, ['a', 5]], states => $stored)->{changes}, $again, 'set again');
    is_deeply(ttl('get', keys => ['k'], states => $stored)->{changes}, {}, 'what one run has set is not set by the next one');
    my $ran = ttl(['t_get', 't_set'], keys => ['k', 'k'], data => [undef, ['a', 5, 'die']], states => $stored);
    is_deeply($ran->{changes}, {}, 'one that has failed prolongs nothing');
    fails(ttl('set', keys => ['k'], data => [['c', 1]]), 'bad-state', qr/'c'.*a, b/, 'not declared');
    $stored = { k => { a => { list => [1] } } };
    is_deeply(ttl('deep', keys => ['k'], data => [2], states => $stored)->{changes}, { k => [{ a => { list => [1, 2] } }, []] }, 'changed in place');
    is_deeply(ttl('deep', keys => ['k', 'k'], data => [2, 'bad'], states => $stored)->{changes}, { k => [{ a => { list => [1, 2] } }, []] }, 'not by a failed one');
    is_deeply(ttl('get', keys => ['k'], states => $stored)->{changes}, {}, 'reading one is no change');
    is_deeply(ttl('each', keys => ['k'], states => { k => { a => 5, b => 6 } })->{changes}, { k => [{ a => 6, b => 7 }, []] }, 'through values');
    is_deeply(ttl('all', keys => ['k'], states => { k => { a => 5, b => 6 } })->{changes}, { k => [{ a => 5 }, ['b']] }, 'all at once');
};

subtest 'deletion' => sub {
    my $stored = { k => { a => 1, b => 2 } };
    is_deeply(state('delete', keys => ['k'], states => $stored)->{changes}, { k => [{}, ['a']] }, 'one');
    is_deeply(state('delete', keys => ['k'])->{changes}, {}, 'what is not there');
    is_deeply(ran(State => ['s_delete', 's_set'], keys => ['k', 'k'], data => [undef, ['a', 3]], states => $stored)->{changes},
        { k => [{ a => 3 }, []] }, 'and set again');
    is_deeply(ran(State => ['s_set', 's_delete'], keys => ['k', 'k'], data => [['a', 3], undef])->{changes}, {}, 'set and deleted');
    is_deeply(ran(State => ['s_count', 's_set'], keys => ['k', 'k'], data => [undef, ['a', 1]], states => $stored)->{changes}, {}, 'changed and back');
};

subtest 'lists and hashes in it' => sub {
    my $stored = { k => { a => { list => [1] } } };
    is_deeply(state('deep', keys => ['k'], data => [2], states => $stored)->{changes}, { k => [{ a => { list => [1, 2] } }, []] }, 'in place');
    is_deeply(state('deep', keys => ['k', 'k'], data => [2, 3], states => $stored)->{changes}, { k => [{ a => { list => [1, 2, 3] } }, []] }, 'twice');
    my $ran = state('deep', keys => ['k', 'k'], data => [2, 'bad'], states => $stored);
    is_deeply($ran->{changes}, { k => [{ a => { list => [1, 2] } }, []] }, 'what a failed one has changed in place is not stored');
    is_deeply(state('get', keys => ['k'], states => $stored)->{changes}, {}, 'reading one is no change');
    $ran = ran(State => ['s_share', 's_change', 's_get'], keys => ['k', 'l', 'k']);
    is_deeply($ran->{emits}[2], [[1]], 'a list that others hold on to is as it was');
    is_deeply($ran->{changes}, { k => [{ a => [1] }, []] }, 'also what is stored');
    is_deeply(ran(State => ['s_long', 's_get'], keys => ['k', 'k'], data => [2_000, undef])->{emits}[2], ['x' x 2_000], 'a long text');
};

subtest 'wrong state' => sub {
    fails(state('set', keys => ['k'], data => [['c', 1]]), 'bad-state', qr/'c'.*a, b/, 'not declared');
    fails(ran('Plain', 'plain', keys => ['k']), 'bad-state', qr/none/, 'none is declared');
    fails(state('count'), 'no-key', qr/'s_count' has no key/, 'no key');
    fails(state('count', keys => [undef]), 'no-key', qr/no key/, 'none of its own');
    fails(state('code', keys => ['k']), 'bad-value', qr/CODE/, 'a value');
    fails(state('long', keys => ['k'], data => [2_998]), 'too-large', qr/3001 bytes/, 'too large');
    fails(state('set', keys => ['k'], data => [['a', 1, 'die']], states => {}), 'die', qr/no/, 'it has failed');
    is_deeply(state('get', keys => ['k'], states => { k => { old => 1 } })->{failed}, undef, 'a state of an earlier version');
};

subtest 'after its end' => sub {
    all('keep', keys => ['k'], data => [5]);
    fails(all('kept', data => [$_]), 'event-over', qr/over/, $_) for qw(emit reply progress log id attempt created);
    fails(all('kept', data => ['state']), 'event-over', qr/over/, 'state');
    is_deeply(ran($_->[0] => ["$_->[1]_hold", "$_->[1]_held"], keys => ['k', 'l'])->{changes}, { k => [{ a => 1 }, []] }, "$_->[0]: what holds on to its state changes nothing")
        for ['State', 's'], ['Ttl', 't'];
    is_deeply(all('read')->{emits}[2], [['keep', 'k', 5]], 'what it was can be read');
};

is($worker->drain, 0, 'it ends');
is($worker->errors, q{}, 'and has not complained');
done_testing;
