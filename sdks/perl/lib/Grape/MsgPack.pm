package Grape::MsgPack;

# Values as msgpack. Data::MessagePack does nearly all of it, in C; what it lacks (bytes, times, foreign extensions) is
# done here in Perl, and only when it occurs.

use strict;
use warnings;
use Carp qw(croak);
use Data::MessagePack ();
use Scalar::Util qw(blessed);

our $VERSION = '0.1.0';

my $XS = Data::MessagePack->new->utf8;
my $MAX_DEPTH = 400;    # Data::MessagePack itself reads no more than 512 levels

# Encodes one value. Dies with a text that says why it cannot travel.
sub encode {
    my ($value) = @_;
    if (!ref $value) {
        return _is_text($value) ? $XS->pack($value) : _bin($value);
    }
    return _is_plain($value, 0) ? $XS->pack($value) : _encode($value, 0);
}

# Decodes the one value in a text of bytes.
sub decode {
    my ($packed) = @_;
    my $value;
    return $value if eval { $value = $XS->unpack($packed); 1 };
    my $at = 0;
    $value = _decode(\$packed, \$at);
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

# A text of characters below 256 is taken as UTF-8 that was not decoded; if it is not that either, it is bytes. Looks at
# a copy: a number that was looked at as a text would travel as one.
sub _is_text {
    my ($copy) = @_;
    return !defined $copy || utf8::is_utf8($copy) || $copy !~ /[\x80-\xff]/x || utf8::decode($copy);
}

# Whether Data::MessagePack can do it; dies if nobody can.
sub _is_plain {
    my ($value, $depth) = @_;
    croak("a value of over $MAX_DEPTH levels cannot travel") if $depth > $MAX_DEPTH;
    my $kind = ref $value;
    if (!$kind) {
        return _is_text($value);
    }
    if ($kind eq 'ARRAY') {
        my $plain = 1;
        for my $item (@{$value}) {
            $plain = _is_plain($item, $depth + 1) && $plain;
        }
        return $plain;
    }
    if ($kind eq 'HASH') {
        my $plain = 1;
        for my $item (values %{$value}) {
            $plain = _is_plain($item, $depth + 1) && $plain;
        }
        return $plain;
    }
    return 1 if $kind eq 'Data::MessagePack::Boolean';
    return 0 if $kind eq 'SCALAR';
    croak("a reference to $kind cannot travel") if !blessed($value);
    return 0 if $value->isa('Grape::Bytes') || $value->isa('Grape::Time') || $value->isa('Grape::Ext');
    return 0 if $value->isa('JSON::PP::Boolean');
    croak("a $kind cannot travel: data are text, numbers, lists, hashes, Grape::Bytes and Grape::Time");
}

sub _encode {
    my ($value, $depth) = @_;
    my $kind = ref $value;
    return encode($value) if !$kind || $kind eq 'Data::MessagePack::Boolean';
    return join q{}, array_head(scalar @{$value}), map { _encode($_, $depth + 1) } @{$value} if $kind eq 'ARRAY';
    if ($kind eq 'HASH') {
        return join q{}, map_head(scalar keys %{$value}), map { ($XS->pack($_), _encode($value->{$_}, $depth + 1)) } keys %{$value};
    }
    return _bin(${$value}) if blessed($value) && $value->isa('Grape::Bytes');
    return _time($value) if blessed($value) && $value->isa('Grape::Time');
    return _ext($value->[0], $value->[1]) if blessed($value) && $value->isa('Grape::Ext');
    if ($kind eq 'SCALAR' || $value->isa('JSON::PP::Boolean')) {
        return ${$value} ? "\xc3" : "\xc2";    # \1 and \0, as JSON modules have it
    }
    croak("a $kind cannot travel");
}

sub _bin {
    my ($bytes) = @_;
    my $size = length $bytes;
    return ($size < 256 ? pack('CC', 0xc4, $size) : $size < 65_536 ? pack('Cn', 0xc5, $size) : pack('CN', 0xc6, $size)) . $bytes;
}

# Extension -1 of the msgpack specification, 96 bits: any time there is.
sub _time {
    my ($time) = @_;
    my ($seconds, $nanos) = @{$time};
    return pack('CCcNq>', 0xc7, 12, -1, $nanos, $seconds);
}

sub _ext {
    my ($type, $bytes) = @_;
    my $size = length $bytes;
    my $head = $size < 256 ? pack('CC', 0xc7, $size) : $size < 65_536 ? pack('Cn', 0xc8, $size) : pack('CN', 0xc9, $size);
    return $head . pack('c', $type) . $bytes;
}

my %FIXED = (
    0xca => ['f>', 4], 0xcb => ['d>', 8], 0xcc => ['C', 1], 0xcd => ['n', 2], 0xce => ['N', 4], 0xcf => ['Q>', 8],
    0xd0 => ['c', 1], 0xd1 => ['s>', 2], 0xd2 => ['l>', 4], 0xd3 => ['q>', 8],
);
my %SIZED = (0xc4 => 'C', 0xc5 => 'n', 0xc6 => 'N', 0xd9 => 'C', 0xda => 'n', 0xdb => 'N', 0xdc => 'n', 0xdd => 'N', 0xde => 'n', 0xdf => 'N',
    0xc7 => 'C', 0xc8 => 'n', 0xc9 => 'N');
my %WIDTH = (C => 1, n => 2, N => 4);

sub _take {
    my ($in, $at, $size) = @_;
    croak('a value that ends too early') if ${$at} + $size > length ${$in};
    my $bytes = substr ${$in}, ${$at}, $size;
    ${$at} += $size;
    return $bytes;
}

sub _size {
    my ($in, $at, $mark) = @_;
    my $format = $SIZED{$mark};
    return unpack $format, _take($in, $at, $WIDTH{$format});
}

sub _text {
    my ($in, $at, $size) = @_;
    my $text = _take($in, $at, $size);
    utf8::decode($text);
    return $text;
}

sub _list {
    my ($in, $at, $count) = @_;
    return [map { _decode($in, $at) } 1 .. $count];
}

sub _hash {
    my ($in, $at, $count) = @_;
    my %hash;
    for (1 .. $count) {
        my $key = _decode($in, $at);
        $hash{defined $key ? $key : q{}} = _decode($in, $at);
    }
    return \%hash;
}

sub _extension {
    my ($in, $at, $size) = @_;
    my $type = unpack 'c', _take($in, $at, 1);
    my $bytes = _take($in, $at, $size);
    return bless [$type, $bytes], 'Grape::Ext' if $type != -1;
    return bless [unpack('N', $bytes), 0], 'Grape::Time' if $size == 4;
    if ($size == 8) {
        my $both = unpack 'Q>', $bytes;
        return bless [$both & ((1 << 34) - 1), $both >> 34], 'Grape::Time';
    }
    my ($nanos, $seconds) = unpack 'Nq>', $bytes;
    return bless [$seconds, $nanos], 'Grape::Time';
}

sub _decode {
    my ($in, $at) = @_;
    my $mark = ord _take($in, $at, 1);
    return $mark if $mark < 0x80;
    return $mark - 256 if $mark >= 0xe0;
    return _hash($in, $at, $mark & 0x0f) if $mark < 0x90;
    return _list($in, $at, $mark & 0x0f) if $mark < 0xa0;
    return _text($in, $at, $mark & 0x1f) if $mark < 0xc0;
    return undef if $mark == 0xc0;    ## no critic (ProhibitExplicitReturnUndef): it is an element of a list
    return $mark == 0xc3 ? Data::MessagePack::true() : Data::MessagePack::false() if $mark == 0xc2 || $mark == 0xc3;
    if (my $fixed = $FIXED{$mark}) {
        return unpack $fixed->[0], _take($in, $at, $fixed->[1]);
    }
    return _extension($in, $at, 1 << ($mark - 0xd4)) if $mark >= 0xd4 && $mark <= 0xd8;
    croak(sprintf 'a byte that begins no value: 0x%02x', $mark) if !$SIZED{$mark};
    my $size = _size($in, $at, $mark);
    return _take($in, $at, $size) if $mark <= 0xc6;
    return _extension($in, $at, $size) if $mark <= 0xc9;
    return _text($in, $at, $size) if $mark <= 0xdb;
    return $mark <= 0xdd ? _list($in, $at, $size) : _hash($in, $at, $size);
}

package Grape::Bytes;

# Bytes that are not text.
sub new { my ($class, $bytes) = @_; return bless \$bytes, $class }
sub value { my ($self) = @_; return ${$self} }

package Grape::Time;

# A point in time: seconds since 1970, and nanoseconds.
sub new { my ($class, $seconds, $nanos) = @_; return bless [$seconds, $nanos || 0], $class }
sub epoch { my ($self) = @_; return $self->[0] + $self->[1] / 1e9 }
sub seconds { my ($self) = @_; return $self->[0] }
sub nanoseconds { my ($self) = @_; return $self->[1] }

package Grape::Ext;

# An extension that Grape does not know: its type, its bytes.
sub new { my ($class, $type, $bytes) = @_; return bless [$type, $bytes], $class }

1;
