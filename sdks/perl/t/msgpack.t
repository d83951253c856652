#!/usr/bin/env perl
use strict;
use warnings;
use utf8;
use Test::More;
use Data::MessagePack ();
use Grape::MsgPack ();

binmode Test::More->builder->$_, ':encoding(UTF-8)' for qw(output failure_output);

sub hex_of { my ($value) = @_; return unpack 'H*', Grape::MsgPack::encode($_[0]) }
sub back { return Grape::MsgPack::decode(Grape::MsgPack::encode($_[0])) }
sub from { my ($hex) = @_; return Grape::MsgPack::decode(pack 'H*', $hex) }

sub refused {
    my ($value, $pattern, $name) = @_;
    eval { Grape::MsgPack::encode($value) };
    my $error = $@;
    ok(ref $error && $error->isa('Grape::Failure') && $error->kind eq 'bad-value', "$name: a failure");
    return like($error, $pattern, "$name: it says why");
}

subtest 'numbers' => sub {
    is(hex_of(5), '05', 'a small one');
    is(hex_of(-1), 'ff', 'a negative one');
    is(hex_of(9_223_372_036_854_775_807), 'cf7fffffffffffffff', '2**63-1');
    is(hex_of(-9_223_372_036_854_775_807 - 1), 'd38000000000000000', '-2**63');
    is(hex_of(18_446_744_073_709_551_615), 'cfffffffffffffffff', '2**64-1');
    is(back($_), $_, "$_ comes back") for 0, 127, 128, 255, 256, 65_535, 65_536, 4_294_967_296, -32, -33, -129, -40_000, -3_000_000_000;
    is(hex_of(1.5), 'cb3ff8000000000000', 'a float');
    is(hex_of(3.0), 'cb4008000000000000', 'a float that is whole stays one');
    is(hex_of(9**9**9), 'cb7ff0000000000000', 'infinity');
    like(hex_of(-sin 9**9**9), qr/\Acb[7f]ff8/, 'NaN');
    my $number = 7;
    is(hex_of("$number"), 'a137', 'a text of digits is text');
    is(hex_of(0 + '7'), '07', '0 + text is a number');
    my $seen = 7;
    hex_of($seen);
    hex_of([$seen, { a => $seen }, 'é']);
    is(hex_of($seen), '07', 'looking at a number does not make it text');
    is(from('ca3fc00000'), 1.5, 'a float of 32 bits');
};

subtest 'text and bytes' => sub {
    my ($marked, $unmarked, $latin) = ("é", "\xc3\xa9", "\xe9");
    utf8::encode(my $encoded = $marked);
    is($encoded, "\xc3\xa9", 'the same bytes');
    is(hex_of($marked), 'a2c3a9', 'decoded text');
    is(hex_of($unmarked), 'a2c3a9', 'text that was not decoded');
    is(hex_of("\xff\x00"), 'c402ff00', 'bytes that are no UTF-8');
    utf8::upgrade($latin);
    is(hex_of($latin), 'a2c3a9', 'a marked text below 256');
    is(hex_of(q{}), 'a0', 'empty');
    is(hex_of("a\0b"), 'a3610062', 'NUL is a character');
    is(back("日本 🍇"), "日本 🍇", 'wide characters come back');
    is(hex_of(Grape::Bytes->new('abc')), 'c403616263', 'Grape::Bytes');
    is(hex_of(Grape::Bytes->new(q{})), 'c400', 'no bytes');
    is(hex_of(["\xff", 'a']), '92c401ffa161', 'bytes in a list');
    is(hex_of(["\xc3\xa9"]), '91a2c3a9', 'unmarked text in a list');
    is(back("\xff" x $_), "\xff" x $_, "$_ bytes") for 1, 255, 256, 65_535, 65_536;
    is(back('x' x $_), 'x' x $_, "$_ characters") for 31, 32, 255, 256, 65_535, 65_536;
    is(hex_of("\xed\xa0\x80"), 'c403eda080', 'an encoded surrogate is no text');
    refused("a\x{d800}", qr/surrogate/, 'a lone surrogate');
    refused(['x', "\x{110000}"], qr/surrogate/, 'a character over U+10FFFF');
    refused({ "\x{d800}" => 1 }, qr/surrogate/, 'a surrogate in a key');
    my $bytes = Grape::Bytes->new("\xff");
    is($bytes->value, "\xff", 'value');
    ok(!eval { Grape::Bytes->new("日"); 1 }, 'wide characters are no bytes');
    ok(!eval { Grape::Bytes->new(undef); 1 }, 'undef is no bytes');
};

subtest 'undef and booleans' => sub {
    is(hex_of(undef), 'c0', 'undef');
    is(hex_of([undef]), '91c0', 'undef in a list');
    is(back([undef, 1])->[0], undef, 'comes back');
    is(hex_of(Data::MessagePack::true()), 'c3', 'true');
    is(hex_of([Data::MessagePack::false()]), '91c2', 'false in a list');
    is(hex_of(\1) . hex_of(\0), 'c3c2', '\1 and \0');
    is(hex_of([\1, "\xff"]), '92c3c401ff', 'next to bytes');
    my ($true, $false) = (from('c3'), from('c2'));
    ok($true && !$false, 'what comes back is true and false');
    is(hex_of([$true, $false]), '92c3c2', 'and travels again');
    require JSON::PP;
    is(hex_of({ a => JSON::PP::true() }), '81a161c3', 'of JSON');
  SKIP: {
        skip 'Perl knows no booleans before 5.36', 3 if $] < 5.036;
        is(hex_of(1 == 1) . hex_of(1 == 2), 'c3c2', 'of comparisons');
        is(hex_of([1 == 1, { a => !1 }]), '92c381a161c2', 'in lists and hashes');
        is(hex_of([1, 0, '1', q{}]), '940100a131a0', 'and nothing else');
    }
};

subtest 'lists and hashes' => sub {
    for my $size (0, 1, 15, 16, 65_535, 65_536) {
        is_deeply(back([1 .. $size]), [1 .. $size], "a list of $size");
        is_deeply(back([1 .. $size, "\xff"]), [1 .. $size, "\xff"], "with bytes behind it");
    }
    for my $size (0, 15, 16, 65_536) {
        my %hash = map { $_ => 1 } 1 .. $size;
        is_deeply(back(\%hash), \%hash, "a hash of $size");
        is_deeply(back({ %hash, x => "\xff" }), { %hash, x => "\xff" }, "with bytes in it");
    }
    is(hex_of({ "é" => 1 }), '81a2c3a901', 'a marked key');
    is(hex_of({ "\xc3\xa9" => 1 }), '81a2c3a901', 'an unmarked one');
    is(hex_of({ "\xff" => 1 }), '81c401ff01', 'bytes as a key');
    is_deeply(back({ "日" => ["é"] }), { "日" => ["é"] }, 'they come back');
    is_deeply(from('8201a161c0a162'), { 1 => 'a', q{} => 'b' }, 'other keys become text');
};

subtest 'depth' => sub {
    my $deep = [];
    $deep = [$deep] for 2 .. 400;
    is(hex_of($deep), '91' x 399 . '90', '400 levels');
    is(hex_of(back($deep)), hex_of($deep), 'come back');
    is(hex_of([$deep->[0], "\xff"]), '92' . '91' x 398 . '90' . 'c401ff', '400 with bytes');
    refused([$deep], qr/400 levels/, '401');
    my $round = {};
    $round->{self} = $round;
    refused($round, qr/contains itself/, 'a circle');
    delete $round->{self};
    my $hex = '91' x 899 . '90';
    my ($value, $levels) = (from($hex), 0);
    ($value, $levels) = ($value->[0], $levels + 1) while $value;
    is($levels, 900, '900 levels can be read');
    ok(!eval { from('91' x 20_000 . '90'); 1 } && $@ =~ /10000 levels/, '20000 cannot');
};

subtest 'times and extensions' => sub {
    is(hex_of(Grape::Time->new(1, 2)), 'c70cff000000020000000000000001', 'a time');
    is(hex_of({ t => [Grape::Time->new(-1, 0)] }), '81a17491c70cff00000000ffffffffffffffff', 'before 1970');
    my $time = from('d6ff00000001');
    is_deeply([ref $time, $time->seconds, $time->nanoseconds], ['Grape::Time', 1, 0], '32 bits');
    $time = from('d7ff0000000400000001');
    is_deeply([$time->seconds, $time->nanoseconds], [1, 1], '64 bits');
    $time = back(Grape::Time->new(-2, 500_000_000));
    is($time->epoch, -1.5, '96 bits');
    is_deeply([@{ Grape::Time->new(1.25) }], [1, 250_000_000], 'a fraction');
    is_deeply([@{ Grape::Time->new(-1.25) }], [-2, 750_000_000], 'a negative one');
    is_deeply([@{ Grape::Time->new(0.9999999999) }], [1, 0], 'it is rounded up');
    ok(!eval { Grape::Time->new(@{$_}); 1 }, 'no time') for ['x'], [undef], [0, -1], [0, 1e9], [9**9**9], [1e15];
    my $ext = back(Grape::Ext->new(5, "\xff\x00"));
    is_deeply([ref $ext, $ext->type, $ext->value], ['Grape::Ext', 5, "\xff\x00"], 'an extension');
    is(back(Grape::Ext->new(-7, 'x' x $_))->value, 'x' x $_, "of $_ bytes") for 0, 255, 256, 65_536;
    is(from("c7${_}ff" . '00' x hex)->type, -1, "-1 of $_ bytes is no time") for '03', '05';
    is(from('d40501')->value, "\x01", 'of a fixed size');
    ok(!eval { Grape::Ext->new(@{$_}); 1 }, 'no extension') for [128, q{}], [-129, q{}], [1, "日"], [1];
};

subtest 'what cannot travel' => sub {
    refused(sub { }, qr/reference to CODE/, 'code');
    refused([{ a => sub { } }], qr/reference to CODE/, 'code inside');
    refused(\*STDOUT, qr/reference to GLOB/, 'a handle');
    refused(bless({}, 'Some::Class'), qr/a Some::Class/, 'an object');
    refused(\\1, qr/reference to REF/, 'a reference to a reference');
    ok(!eval { Grape::MsgPack::encode(*STDOUT); 1 }, 'a glob');
};

subtest 'broken bytes' => sub {
    for my $hex (q{}, 'c1', '92', '9201', 'a2', 'a261', 'c402ff', 'c7', 'c70c', 'd9', 'dc00', 'ddffffffff', 'dfffffffff', 'cb00', '0101', '81a161') {
        ok(!eval { from($hex); 1 }, "'$hex' is no value");
    }
    eval { die "mine\n" };
    from('d40501');
    is($@, "mine\n", 'an error of the caller is kept');
};

done_testing;
