package Grape::MsgPack;

# Data::MessagePack does nearly all of it, in C; what it lacks (bytes, times, foreign extensions) is done here in Perl, and
# only when it occurs.

use strict;
use warnings;
no warnings 'recursion';    ## no critic (ProhibitNoWarnings): data may be nested
no if $] >= 5.036, warnings => 'experimental::builtin';
use Carp qw(croak);
use Data::MessagePack ();
use Scalar::Util qw(blessed);
use Grape::Bytes ();
use Grape::Ext ();
use Grape::Failure ();
use Grape::Time ();

our $VERSION = '0.1.0';

use constant HAS_BOOLEANS => $] >= 5.036;    # as a constant the other branch is not even compiled

my $XS = Data::MessagePack->new->utf8;
my $MAX_WRITTEN = 400;    # levels; Data::MessagePack itself does no more than 512
my $MAX_READ = 10_000;

# A number that was looked at as a text would travel as one. So this looks at a copy, and sends the original.
sub encode {    ## no critic (RequireArgUnpacking)
    my ($copy) = @_;
    if (!ref $copy) {
        return $copy ? "\xc3" : "\xc2" if HAS_BOOLEANS && builtin::is_bool($copy);
        return $XS->pack($_[0]) if !defined $copy || $copy !~ /[^\x00-\x7f]/x || is_text($copy);
        return _bin($copy);
    }
    return _is_plain($copy, 1) ? $XS->pack($copy) : _encode($copy);
}

# The same for equal values: with the keys of hashes in order. For what can be encoded.
sub encode_in_order {    ## no critic (RequireArgUnpacking): see encode
    my ($value) = @_;
    my $kind = ref $value;
    return join q{}, array_head(scalar @{$value}), map { encode_in_order($_) } @{$value} if $kind eq 'ARRAY';
    return join q{}, map_head(scalar keys %{$value}), map { (encode($_), encode_in_order($value->{$_})) } sort keys %{$value} if $kind eq 'HASH';
    return encode($_[0]);
}

# What is known to be plain: numbers, texts that were checked, lists of them.
sub encode_plain { return $XS->pack($_[0]) }

sub decode {
    my ($packed) = @_;
    my $value;
    {
        local ($@, $SIG{__DIE__});
        no warnings 'uninitialized';    ## no critic (ProhibitNoWarnings): nil as a key
        return $value if eval { $value = $XS->unpack($packed); 1 };
    }
    my $at = 0;
    $value = _decode(\$packed, \$at, 1);
    croak('bytes behind the end of a value') if $at != length $packed;
    return $value;
}

# The head of an array of so many elements; what is joined behind it are the elements, encoded.
sub array_head {
    my ($count) = @_;
    return $count < 16 ? pack('C', 0x90 | $count) : $count < 65_536 ? pack('Cn', 0xdc, $count) : pack('CN', 0xdd, $count);
}

sub map_head {
    my ($count) = @_;
    return $count < 16 ? pack('C', 0x80 | $count) : $count < 65_536 ? pack('Cn', 0xde, $count) : pack('CN', 0xdf, $count);
}

sub _refuse {
    my ($text) = @_;
    die Grape::Failure->new(kind => 'bad-value', text => $text);
}

# Whether it is text, or bytes. Without Perl's mark for text it is text if it can be read as UTF-8.
sub is_text {
    my ($copy) = @_;
    my $is_marked = utf8::is_utf8($copy);
    return 0 if !$is_marked && !utf8::decode($copy);
    return 1 if $copy !~ /[\x{d800}-\x{dfff}]|[^\x{0}-\x{10ffff}]/x;
    return 0 if !$is_marked;
    _refuse('a text with a lone surrogate, or a character over U+10FFFF, cannot travel');
}

# Whether Data::MessagePack can do it; dies if nobody can.
sub _is_plain {
    my ($value, $level) = @_;
    _refuse("a value of over $MAX_WRITTEN levels, or one that contains itself, cannot travel") if $level > $MAX_WRITTEN;
    my $kind = ref $value;
    if ($kind ne 'ARRAY' && $kind ne 'HASH') {
        return 1 if $kind eq 'Data::MessagePack::Boolean';
        return 0 if $kind eq 'SCALAR' || (blessed $value && _is_known($value));
        _refuse('a ' . (blessed $value ? $kind : "reference to $kind")
                . ' cannot travel: data are text, numbers, lists, hashes, booleans, Grape::Bytes, Grape::Time, Grape::Ext');
    }
    my $is_plain = $kind eq 'ARRAY' || !grep { /[^\x00-\x7f]/x && !is_text($_) } keys %{$value};
    for my $item ($kind eq 'ARRAY' ? @{$value} : values %{$value}) {
        if (ref $item) {
            $is_plain = 0 if !_is_plain($item, $level + 1);
            next;
        }
        next if !defined $item;
        my $copy = $item;    # see encode
        if ((HAS_BOOLEANS && builtin::is_bool($copy)) || ($copy =~ /[^\x00-\x7f]/x && !is_text($copy))) {
            $is_plain = 0;
        }
    }
    return $is_plain;
}

sub _is_known {
    my ($value) = @_;
    return scalar grep { $value->isa($_) } qw(Grape::Bytes Grape::Time Grape::Ext JSON::PP::Boolean Types::Serialiser::Boolean);
}

# What _is_plain has looked at, and found to be not plain.
sub _encode {    ## no critic (RequireArgUnpacking): see encode
    my ($value) = @_;
    my $kind = ref $value;
    return encode($_[0]) if !$kind || $kind eq 'Data::MessagePack::Boolean';
    return join q{}, array_head(scalar @{$value}), map { _encode($_) } @{$value} if $kind eq 'ARRAY';
    return join q{}, map_head(scalar keys %{$value}), map { (encode($_), _encode($value->{$_})) } keys %{$value} if $kind eq 'HASH';
    if (blessed $value) {
        return _bin($value->value) if $value->isa('Grape::Bytes');
        return _time($value) if $value->isa('Grape::Time');
        return _ext($value->type, $value->value) if $value->isa('Grape::Ext');
    }
    return ${$value} ? "\xc3" : "\xc2";    # \1 and \0, as JSON modules have it
}

sub _bin {
    my ($bytes) = @_;
    my $size = length $bytes;
    return ($size < 256 ? pack('CC', 0xc4, $size) : $size < 65_536 ? pack('Cn', 0xc5, $size) : pack('CN', 0xc6, $size)) . $bytes;
}

# Extension -1 of the msgpack specification, 96 bits: any time there is.
sub _time {
    my ($time) = @_;
    return pack('CCcNq>', 0xc7, 12, -1, $time->nanoseconds, $time->seconds);
}

sub _ext {
    my ($type, $bytes) = @_;
    my $size = length $bytes;
    my $head = $size < 256 ? pack('CC', 0xc7, $size) : $size < 65_536 ? pack('Cn', 0xc8, $size) : pack('CN', 0xc9, $size);
    return $head . pack('c', $type) . $bytes;
}

my %FIXED = (
    0xca => ['f>', 4],
    0xcb => ['d>', 8],
    0xcc => ['C', 1],
    0xcd => ['n', 2],
    0xce => ['N', 4],
    0xcf => ['Q>', 8],
    0xd0 => ['c', 1],
    0xd1 => ['s>', 2],
    0xd2 => ['l>', 4],
    0xd3 => ['q>', 8],
);
my %SIZED = (
    (map { $_ => ['C', 1] } 0xc4, 0xc7, 0xd9),
    (map { $_ => ['n', 2] } 0xc5, 0xc8, 0xda, 0xdc, 0xde),
    (map { $_ => ['N', 4] } 0xc6, 0xc9, 0xdb, 0xdd, 0xdf),
);

sub _take {
    my ($in, $at, $size) = @_;
    croak('a value that ends too early') if ${$at} + $size > length ${$in};
    my $bytes = substr ${$in}, ${$at}, $size;
    ${$at} += $size;
    return $bytes;
}

sub _number {
    my ($in, $at, $format, $width) = @_;
    return unpack $format, _take($in, $at, $width);
}

sub _text {
    my ($in, $at, $size) = @_;
    my $text = _take($in, $at, $size);
    utf8::decode($text);
    return $text;
}

sub _list {
    my ($in, $at, $count, $level) = @_;
    my @list;
    push @list, _decode($in, $at, $level) for 1 .. $count;
    return \@list;
}

sub _hash {
    my ($in, $at, $count, $level) = @_;
    my %hash;
    for (1 .. $count) {
        my $key = _decode($in, $at, $level);
        $hash{ defined $key ? $key : q{} } = _decode($in, $at, $level);
    }
    return \%hash;
}

sub _extension {
    my ($in, $at, $size) = @_;
    my $type = unpack 'c', _take($in, $at, 1);
    my $bytes = _take($in, $at, $size);
    if ($type == -1 && $size == 4) {
        return bless [unpack('N', $bytes), 0], 'Grape::Time';
    }
    if ($type == -1 && $size == 8) {
        my $both = unpack 'Q>', $bytes;
        return bless [$both & ((1 << 34) - 1), $both >> 34], 'Grape::Time';
    }
    if ($type == -1 && $size == 12) {
        my ($nanos, $seconds) = unpack 'Nq>', $bytes;
        return bless [$seconds, $nanos], 'Grape::Time';
    }
    return Grape::Ext->new($type, $bytes);
}

sub _decode {
    my ($in, $at, $level) = @_;
    croak("a value of over $MAX_READ levels") if $level > $MAX_READ;
    my $mark = ord _take($in, $at, 1);
    return $mark if $mark < 0x80;
    return $mark - 256 if $mark >= 0xe0;
    return _hash($in, $at, $mark & 0x0f, $level + 1) if $mark < 0x90;
    return _list($in, $at, $mark & 0x0f, $level + 1) if $mark < 0xa0;
    return _text($in, $at, $mark & 0x1f) if $mark < 0xc0;
    return undef if $mark == 0xc0;    ## no critic (ProhibitExplicitReturnUndef): it is an element of a list
    return $mark == 0xc3 ? Data::MessagePack::true() : Data::MessagePack::false() if $mark == 0xc2 || $mark == 0xc3;
    return _number($in, $at, @{ $FIXED{$mark} }) if $FIXED{$mark};
    return _extension($in, $at, 1 << ($mark - 0xd4)) if $mark >= 0xd4 && $mark <= 0xd8;
    croak(sprintf 'a byte that begins no value: 0x%02x', $mark) if !$SIZED{$mark};
    my $size = _number($in, $at, @{ $SIZED{$mark} });
    return _take($in, $at, $size) if $mark <= 0xc6;
    return _extension($in, $at, $size) if $mark <= 0xc9;
    return _text($in, $at, $size) if $mark <= 0xdb;
    return $mark <= 0xdd ? _list($in, $at, $size, $level + 1) : _hash($in, $at, $size, $level + 1);
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::MsgPack - values of Perl as msgpack

=head1 SYNOPSIS

    my $bytes = Grape::MsgPack::encode({ word => 'grape', count => 3 });
    my $value = Grape::MsgPack::decode($bytes);

=head1 DESCRIPTION

How data, replies and states travel. Handlers need not call it: L<Grape::Event> does. The README has the table of types.

Whether a scalar is a number or a text is decided by how it was made: C<5> is a number, C<"5"> is text. A number that was
used as text (printed, matched, compared with C<eq>) counts as text from then on, as everywhere in Perl. C<0 + $number>
is a number again, C<"$text"> is text.

=head1 FUNCTIONS

=head2 encode(VALUE)

Dies with a L<Grape::Failure> of kind C<bad-value> for what cannot travel: code, handles, objects of other classes, what
contains itself, what has over 400 levels.

=head2 decode(BYTES)

Dies if these are not exactly one value.

=head2 encode_plain(VALUE)

The same as C<encode> for what is known to be numbers and text; nothing is looked at.

=head2 array_head(COUNT)

The beginning of a list. So many encoded values follow.

=head2 map_head(COUNT)

The beginning of a hash. So many encoded keys and values follow, in turn.

=cut
