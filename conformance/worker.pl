#!/usr/bin/env perl
# The conformance app in Perl: docs/conformance.md says what each node does.
use strict;
use warnings;
use Time::HiRes qw(sleep);
use Grape::Worker;

my $worker = Grape::Worker->new;

sub node {
    my ($event, $node, $handler, %options) = @_;
    return $worker->slot($event, { node => $node, %options }, $handler);
}

sub asked {
    my ($event, $data) = @_;
    my $answer;
    return $answer if eval { $answer = $event->call(answer => $data, timeout => 5); 1 };
    my $error = $@;
    return [$error->code, $error->reason] if ref $error && $error->isa('Grape::CallFailed');
    return [$error->kind, $error->text] if ref $error && $error->isa('Grape::NoAnswer');
    die $error;
}

node(echo => 'Echo', sub { my ($event) = @_; $event->emit(out => $event->data) });
node(count => 'Count', sub { my ($event) = @_; $event->emit(out => ++$event->state->{count}) }, states => ['count']);
node(
    store => 'Store',
    sub {
        my ($event) = @_;
        my $old = $event->state->{value};
        $event->state->{value} = $event->data;
        $event->emit(out => $old);
    },
    states => ['value']
);
node(erase => 'Store', sub { my ($event) = @_; $event->emit(out => delete $event->state->{value}) });
node(fail => 'Fail', sub { my ($event) = @_; die $event->data . "\n" });
for my $name ('odd', 'second') {
    node(
        $name => 'Odd',
        sub {
            my ($event) = @_;
            $event->emit(out => [$event->data, ++$event->state->{count}]);
            die "odd\n" if $event->data % 2;
        },
        states => ['count']
    );
}
node(
    first => 'First',
    sub {
        my ($event) = @_;
        my ($key, $data) = @{ $event->data };
        ++$event->state->{count};
        $event->emit(second => $data, key => $key);
        die "first\n" if $data < 0;
    },
    states => ['count'],
    emits => ['second']
);
node(who => 'Who', sub { my ($event) = @_; $event->emit(out => [$event->id, $event->attempt]) });
node(many => 'Many', sub { my ($event) = @_; $event->emit(out => $_) for 0 .. $event->data - 1 });
node(send => 'Send', sub { my ($event) = @_; my ($key, $data) = @{ $event->data }; $event->emit(echo => $data, key => $key) });
node(answer => 'Answer', sub { my ($event) = @_; $event->reply($event->data) });
node(later => 'Later', sub { my ($event) = @_; my ($delay, $data) = @{ $event->data }; $event->emit(out => $data, delay => $delay) });
node(
    alarm => 'Alarm',
    sub {
        my ($event) = @_;
        my ($timer, $delay, $data) = @{ $event->data };
        $event->emit(out => $data, delay => $delay, timer => $timer);
    }
);
node(calm => 'Alarm', sub { my ($event) = @_; $event->cancel_timer($event->data) });
node(
    ask => 'Ask',
    sub {
        my ($event) = @_;
        ++$event->state->{count};
        $event->emit(out => 'asks');
        $event->emit(out => [map { asked($event, $_) } @{ $event->data }]);
    },
    states => ['count']
);
node(refer => 'Refer', sub { my ($event) = @_; my ($key, $data) = @{ $event->data }; $event->emit(out => $event->call(answer => $data, key => $key)) });
node(greedy => 'Greedy', sub { my ($event) = @_; eval { $event->call(answer => $event->data) }; $event->emit(out => 'caught') });
node(export => 'Export', sub { my ($event) = @_; $event->emit(@{ $event->data }) });
node(consult => 'Consult', sub { my ($event) = @_; $event->emit(out => $event->call(@{ $event->data })) });
node(paced => 'Paced', sub { my ($event) = @_; $event->emit(out => $event->data) }, rate => '10/s', burst => 3, timeout => 1);
node(hurry => 'Hurry', sub { my ($event) = @_; $event->emit(paced => $event->data) }, emits => ['paced']);
sub text {
    my ($bytes) = @_;
    utf8::decode($bytes) if defined $bytes;
    return $bytes;
}

sub repeated {
    my ($text, $count) = @_;
    return sub { return $count-- > 0 ? $text : undef };
}

sub broken {
    my $next = repeated('z' x 65_536, 40);
    return sub { my $chunk = $next->(); die "it breaks off\n" if !defined $chunk; return $chunk };
}

sub said {
    my ($about) = @_;
    return if !defined $about;
    return [@{$about}{qw(size version checksum content_type tags user)}, $about->{time} > 0 ? \1 : \0, defined $about->{expires} ? \1 : \0];
}

my %keep = (
    put => sub { my ($event, $storage, $key, $data, $about) = @_; $storage->put($key, $data, %{ $about || {} }) },
    large => sub { my ($event, $storage, $key, $text, $count) = @_; $storage->put($key, repeated($text, $count)) },
    broken => sub { my ($event, $storage, $key) = @_; $storage->put($key, broken()) },
    get => sub { my ($event, $storage, @range) = @_; $event->emit(out => text($storage->get(@range))) },
    count => sub {
        my ($event, $storage, @range) = @_;
        my ($next, $size) = ($storage->chunks(@range), 0);
        while (defined(my $chunk = $next->())) { $size += length $chunk }
        $event->emit(out => $size);
    },
    stat => sub { my ($event, $storage, $key) = @_; $event->emit(out => said($storage->stat($key))) },
    list => sub { my ($event, $storage, $prefix, $tags) = @_; $event->emit(out => [map { $_->{key} } $storage->list($prefix, tags => $tags)]) },
    remove => sub { my ($event, $storage, $key) = @_; $storage->remove($key) },
    pass => sub { my ($event, $storage, $name, $data) = @_; $event->emit($name, $data) },
    ask => sub { my ($event, $storage, $name, $data) = @_; $event->emit(out => $event->call($name, $data)) },
    fail => sub { my ($event, $storage, $text) = @_; die "$text\n" },
);

sub keep {
    my ($event) = @_;
    for my $words (@{ $event->data }) {
        my ($what, $namespace, @rest) = @{$words};
        $keep{$what}->($event, defined $namespace ? $event->storage->namespace($namespace) : $event->storage, @rest);
    }
    return;
}
node(keep => 'Keep', \&keep, emits => ['kept']);
node(kept => 'Kept', \&keep);
node(sleep => 'Sleep', sub { my ($event) = @_; sleep $event->data; $event->emit(out => $event->data) }, timeout => 1);
node(unknown => 'Unknown', sub { my ($event) = @_; $event->emit(nowhere => $event->data) });
node(say => 'Say', sub { my ($event) = @_; print $event->data, "\n" });
node(note => 'Note', sub { my ($event) = @_; $event->log(@{ $event->data }) });
node(mutter => 'Mutter', sub { my ($event) = @_; $event->log(@{ $event->data }) });
node(die => 'Die', sub { require POSIX; POSIX::_exit(3) });

exit $worker->run;
