#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use FindBin ();
use lib "$FindBin::Bin/lib";
use Adapter ();
use Grape::Bytes ();

# Begins a run of one event, without waiting for what comes of it.
sub begin {
    my ($worker, $name, $data) = @_;
    $worker->say_to(7, 'A', 1, [$name], ['k'], [$data]);
    return;
}

# What it wants, with this answer.
sub wanted {
    my ($worker, @answer) = @_;
    my $want = $worker->hear;
    $worker->say_to(12, @answer);
    return $want;
}

my $code = <<'PERL';
$worker->slot(put => { node => 'A' }, sub { my ($e) = @_; $e->storage->put('a/é', $e->data, content_type => 'text/plain', tags => ['x'], time => 1.5, ttl => 60) });
$worker->slot(get => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => $e->storage->namespace('photos')->get('k', 2, 9)) });
$worker->slot(stat => { node => 'A' }, sub { my ($e) = @_; my $about = $e->storage->stat('k'); $e->emit(out => $about && [@{$about}{qw(time expires)}]) });
$worker->slot(list => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => [map { $_->{key} } $e->storage->list('k', tags => ['t'])]) });
$worker->slot(file => { node => 'A' }, sub { my ($e) = @_; open my $file, '<', $e->data or die "$!\n"; $e->storage->put(f => $file) });
$worker->slot(break => { node => 'A' }, sub { my ($e) = @_; my $n = 2; $e->storage->put(f => sub { die "broken\n" if !$n--; 'x' x 1_500_000 }) });
$worker->slot(wrong => { node => 'A' }, sub { my ($e) = @_; $e->storage->put(f => [1]) });
$worker->slot(caught => { node => 'A' }, sub { my ($e) = @_; $e->emit(out => $@->kind) if !eval { $e->storage->remove('k'); 1 } });
my $kept;
$worker->slot(late => { node => 'A' }, sub { my ($e) = @_; $kept->stat('k') if $kept; $kept = $e->storage });
PERL

my $worker = Adapter->start($code);
ok((grep { $_ eq 'objects' } @{ $worker->begin->[5] }), 'it says that it has objects');

begin($worker, put => "text \x{65e5}");
my $want = wanted($worker, q{});
is_deeply([@{$want}[0 .. 5, 9 .. 11]], [43, 0, 'put', undef, 'a/é', 0, "text \x{65e5}", $want->[10], $want->[11]], 'what is put');
ok($want->[11], 'in one part');
is_deeply($want->[8], { content_type => 'text/plain', tags => ['x'], time => 1_500_000, ttl => 60 }, 'with what is known of it');
is_deeply($worker->hear->[0], 39, 'then it is done');

my $about = { key => 'k', size => 7, version => '3', checksum => 'sha256:00', time => 2_500_000, expires => 4_000_000 };
begin($worker, get => undef);
$want = wanted($worker, q{}, q{}, \1, $about, Grape::Bytes->new('ab'), [], q{}, \1);
is_deeply([@{$want}[2 .. 7]], ['get', 'photos', 'k', 2, 9, q{}], 'what is got');
$want = wanted($worker, q{}, q{}, \1, $about, Grape::Bytes->new('cd'), [], q{}, \0);
is_deeply([@{$want}[2 .. 7]], ['get', 'photos', 'k', 4, 9, 'sha256:00'], 'it goes on, with the checksum that it has to have');
is($worker->hear->[2][2][0], 'abcd', 'all of it');
begin($worker, get => undef);
wanted($worker, q{}, q{}, \0);
is($worker->hear->[2][2][0], undef, 'there is none');
begin($worker, get => undef);
my $some = "\x{65e5}";
utf8::encode($some);
wanted($worker, q{}, q{}, \1, $about, Grape::Bytes->new($some), [], q{}, \1);
is(wanted($worker, q{}, q{}, \1, $about, Grape::Bytes->new("\xff"), [], q{}, \0)->[5], 5, 'bytes are counted, not characters');
is($worker->hear->[2][2][0], "$some\xff", 'and come as they are');

begin($worker, stat => undef);
wanted($worker, q{}, q{}, \1, $about);
is_deeply($worker->hear->[2][2][0], [2.5, 4], 'times are seconds');

begin($worker, list => undef);
$want = wanted($worker, q{}, q{}, \1, undef, Grape::Bytes->new(q{}), [{ %{$about}, key => 'k1' }, { %{$about}, key => 'k2' }], 'k2');
is_deeply([@{$want}[2 .. 4, 7, 8]], ['list', undef, 'k', q{}, { tags => ['t'] }], 'what is listed');
is(wanted($worker, q{}, q{}, \1, undef, Grape::Bytes->new(q{}), [{ %{$about}, key => 'k3' }])->[7], 'k2', 'it goes on there');
is_deeply($worker->hear->[2][2][0], ['k1', 'k2', 'k3'], 'the keys');

my $path = "$worker->{directory}/large";
open my $file, '>', $path or die;
print {$file} 'f' x 2_500_000;
close $file or die;
begin($worker, file => $path);
my @parts = map { wanted($worker, q{}) } 1 .. 3;
is_deeply([map { length $_->[9] } @parts], [1_048_576, 1_048_576, 402_848], 'a file goes part by part');
is_deeply([map { $_->[11] ? 1 : 0 } @parts], [0, 0, 1], 'the last one is said');
is_deeply([map { $_->[10] } @parts], [($parts[0][10]) x 3], 'all of one object');
is($worker->hear->[0], 39, 'done');

begin($worker, break => undef);
wanted($worker, q{});
is(wanted($worker, q{})->[2], 'drop', 'what breaks off is given up');
like($worker->hear->[5][2], qr/broken/, 'and why');

begin($worker, wrong => undef);
is($worker->hear->[5][1], 'bad-argument', 'what no object is made of');
begin($worker, put => 'x');
wanted($worker, 'handler', 'not granted');
is_deeply([@{ $worker->hear->[5] }[1, 2]], ['handler', 'not granted'], 'what cannot be is its failure');
begin($worker, caught => undef);
wanted($worker, 'bad-argument', 'no key');
is($worker->hear->[2][2][0], 'bad-argument', 'which can be caught');
begin($worker, late => undef);
is($worker->hear->[5], undef, 'a storage that is kept');
begin($worker, late => undef);
is($worker->hear->[5][1], 'event-over', 'is over with its event');
is($worker->drain, 0, 'and it ends');
done_testing;
