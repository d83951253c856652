package Adapter;

# What stands before a worker in Grape: starts a script at a real socket, and speaks with it.

use strict;
use warnings;
use Data::MessagePack ();
use File::Temp qw(tempdir);
use IO::Select ();
use POSIX qw(:sys_wait_h);
use Socket qw(AF_UNIX SOCK_STREAM);
use Time::HiRes qw(sleep time);
use Grape::MsgPack ();

our %TAG = (welcome => 1, drain => 6, run => 7, other_apps => 10, hello => 32, refusal => 33, beat => 36, ran => 39);
my $PATIENCE = 20;

sub start {
    my ($class, $code, %how) = @_;
    my $directory = tempdir(CLEANUP => 1);
    my $script = "$directory/nodes.pl";
    open my $file, '>:encoding(UTF-8)', $script or die "$script: $!";
    print {$file} "use strict; use warnings; use Grape::Worker;\nmy \$worker = Grape::Worker->new;\n#line 1 nodes.pl\n$code\nexit \$worker->run;\n";
    close $file or die "$script: $!";
    local $^F = 100;    # the worker inherits its end
    socketpair my $mine, my $its, AF_UNIX, SOCK_STREAM, 0 or die "socketpair: $!";
    my $self = bless { socket => $mine, directory => $directory }, $class;
    $self->{pid} = fork;
    if (!$self->{pid}) {
        close $mine;
        open STDOUT, '>', "$directory/out" or die;
        open STDERR, '>', "$directory/err" or die;
        exec $^X, (map { "-I$_" } @INC), $script, '--config', $how{config} || '{}', '--fd', fileno $its, '--parent', defined $how{parent} ? $how{parent} : getppid, @{ $how{words} || [] };
        die 'exec';
    }
    return $self;
}

sub send_bytes {
    my ($self, $bytes) = @_;
    while (length $bytes) {
        my $sent = syswrite $self->{socket}, $bytes or die "it does not read: $!";
        substr $bytes, 0, $sent, q{};
    }
    return;
}

sub say_to {
    my ($self, @message) = @_;
    my $packed = Grape::MsgPack::encode(\@message);
    return $self->send_bytes(pack('V', length $packed) . $packed);
}

sub _read {
    my ($self, $size) = @_;
    my $bytes = q{};
    while (length $bytes < $size) {
        IO::Select->new($self->{socket})->can_read($PATIENCE) or die 'it says nothing';
        sysread $self->{socket}, $bytes, $size - length $bytes, length $bytes or return;
    }
    return $bytes;
}

# The next message; undef: it has ended.
sub hear {
    my ($self) = @_;
    my $head = $self->_read(4);
    return if !defined $head;
    return Grape::MsgPack::decode($self->_read(unpack 'V', $head));
}

# Until it is ready, or has refused.
sub begin {
    my ($self, %limits) = @_;
    my $hello = $self->hear or die 'no Hello: ' . $self->errors;
    my $peers = delete $limits{peers} || {};
    my %topology = (%{ $hello->[4] }, name => 'here', outputs => ['out']);
    $self->say_to($TAG{welcome}, 1, 'perl', 'perl.0', 32, {%limits}, [], [], 0, 30.0, 1_000, \%topology, $peers);
    $self->{answer} = $self->hear;
    return $hello;
}

# Run events of a node; returns what it has answered, without Beat.
sub run {
    my ($self, $node, %what) = @_;
    my $count = $what{count} || scalar @{ $what{data} || $what{keys} || [1] };
    $self->say_to(
        $TAG{run}, $node, $count, ref $what{names} ? $what{names} : [$what{names}], $what{keys}, $what{data},
        defined $what{prefix} ? $what{prefix} : 'e.', $what{first} || 0, $what{ids}, $what{created} || 0, $what{attempt} || 1, $what{states}, $what{answers} || []
    );
    my ($done, @answers) = (0);
    while ($done < $count) {
        my $message = $self->hear or return @answers;
        next if $message->[0] == $TAG{beat};
        die "tag $message->[0]" if $message->[0] != $TAG{ran};
        push @answers, $message;
        $done += $message->[1];
        last if $message->[5];
    }
    return @answers;
}

# The same, with one answer.
sub one { my ($self, @run) = @_; my ($only, @others) = $self->run(@run); die "several answers" if @others; return $only }

# Ask it to end; returns how it did.
sub drain {
    my ($self) = @_;
    $self->say_to($TAG{drain});
    return $self->ended;
}

sub hang_up { my ($self) = @_; close $self->{socket}; return }

# The exit code, or 'signal N', or 'alive'.
sub ended {
    my ($self) = @_;
    return $self->{ended} if defined $self->{ended};
    my $until = time + $PATIENCE;
    while (time < $until) {
        if (waitpid($self->{pid}, WNOHANG) == $self->{pid}) {
            return $self->{ended} = $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
        }
        sleep 0.01;
    }
    return 'alive';
}

sub _text {
    my ($self, $name) = @_;
    open my $file, '<', "$self->{directory}/$name" or die $!;
    my $text = join q{}, <$file>;
    close $file or die $!;
    return $text;
}

sub printed { my ($self) = @_; return $self->_text('out') }
sub errors { my ($self) = @_; return $self->_text('err') }

sub DESTROY {
    my ($self) = @_;
    local ($?, $!);
    return if defined $self->{ended};
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
