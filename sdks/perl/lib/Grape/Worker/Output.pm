package Grape::Worker::Output;

# Standard output: each line says which node has printed it.

use strict;
use warnings;
use Carp qw(croak);
use IO::Handle ();

our $VERSION = '0.1.0';

sub TIEHANDLE {
    my ($class, $worker, $handle) = @_;
    return bless { worker => $worker, out => raw($handle), line => q{} }, $class;
}

# The same file, without the layers of the script: what goes there is encoded already.
sub raw {
    my ($handle) = @_;
    open my $raw, '>&', $handle    ## no critic (RequireBriefOpen): for as long as the worker lives
        or croak("no standard output: $!");
    binmode $raw;
    $raw->autoflush(1);
    return $raw;
}

# As bytes. What Perl has not marked as text may be UTF-8 already; if not, it is Latin-1.
sub as_utf8 {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text) || !utf8::decode(my $copy = $text);
    return $text;
}

sub PRINT {
    my ($self, @texts) = @_;
    my $text = join defined $, ? $, : q{}, map { defined $_ ? $_ : q{} } @texts;
    $text .= $\ if defined $\;
    return $self->_write($text);
}

sub PRINTF {
    my ($self, $format, @values) = @_;
    return $self->_write(sprintf $format, @values);
}

sub WRITE {
    my ($self, $text, $size, $at) = @_;
    my $part = substr $text, $at || 0, defined $size ? $size : length $text;
    return $self->_write($part) ? length $part : undef;
}

sub OPEN {
    my ($self, @how) = @_;
    $self->finish_line;
    my ($mode, @rest) = @how;
    my $is_open = @rest ? open $self->{out}, $mode, @rest : open $self->{out}, $mode;    ## no critic (ProhibitTwoArgOpen): the script's
    binmode $self->{out} if $is_open;
    $self->{out}->autoflush(1) if $is_open;
    return $is_open;
}

sub CLOSE { my ($self) = @_; $self->finish_line; return close $self->{out} }
sub FILENO { my ($self) = @_; return fileno $self->{out} }
sub BINMODE { return 1 }

# End a line that was begun: what comes next is somebody else's.
sub finish_line {
    my ($self) = @_;
    return $self->{line} eq q{} || $self->_write("\n");
}

sub _write {
    my ($self, $text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    $text = $self->{line} . $text;
    my $end = rindex $text, "\n";
    $self->{line} = substr $text, $end + 1;
    return 1 if $end < 0;
    my $node = $self->{worker}{node};
    my $mark = defined $node ? "\x1e\x1e" . as_utf8($node) . "\x1e" : q{};
    my $lines = join q{}, map { "$mark$_\n" } split /\n/x, as_utf8(substr $text, 0, $end), -1;
    local ($,, $\);
    return print { $self->{out} } $lines;
}

1;

__END__

=encoding utf8

=head1 NAME

Grape::Worker::Output - standard output, by node

=head1 DESCRIPTION

A part of L<Grape::Worker>, which ties STDOUT to it. What programs print that a handler starts does not go through it: it
is shown without a node.

=cut
