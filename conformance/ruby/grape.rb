# frozen_string_literal: true

# A worker of Grape in Ruby: it declares slots, and runs their handlers. It is a base speaker (docs/protocol.md, section
# 11): partitions, the store and the log are the adapter's business, which Grape starts before it. docs/conformance.md
# walks through this file.

require "json"
require "msgpack"
require "socket"
require "stringio"

module Grape
  PROTOCOL = 1
  WELCOME, DRAIN, RUN, HELLO, REFUSAL, BEAT, RAN = 1, 6, 7, 32, 33, 36, 39
  MAX_FRAME = 96 << 20
  MAX_DELAY = 1 << 62
  HAND_IN_SECONDS = 1
  HAND_IN_BYTES = 4 << 20
  FAILURES = [StandardError, ScriptError, SystemStackError].freeze # an `exit` ends the worker

  # This event has failed, with a kind that programs may rely on. Handlers may raise it, too.
  class Failure < StandardError
    attr_reader :kind

    def initialize(kind, text)
      super(text)
      @kind = kind.to_s
    end
  end

  # What travels: nil, booleans, numbers, text, bytes (text that is ASCII-8BIT), arrays, hashes, times.
  module Values
    INTEGERS = (-(1 << 63)..(1 << 64) - 1).freeze
    MAX_DEPTH = 100 # the gem itself reads no more than 128 levels
    FACTORY = MessagePack::Factory.new
    FACTORY.register_type(-1, Time, packer: MessagePack::Time::Packer, unpacker: MessagePack::Time::Unpacker)

    # A value that is encoded already; it becomes a part of a message as it is.
    Packed = Struct.new(:bytes) do
      def to_msgpack(packer) = packer.buffer << bytes
      def value = Values.load(bytes)
    end

    def self.dump(value) = FACTORY.dump(value)
    def self.load(bytes) = FACTORY.load(bytes, allow_unknown_ext: true)

    # The gem would write text that is no UTF-8, which ends the worker, and follow a cycle for ever.
    def self.check(value, depth = MAX_DEPTH)
      case value
      when nil, true, false, Float, Symbol, Time, MessagePack::ExtensionValue then return
      when String then return if value.encoding == Encoding::BINARY || value.valid_encoding?
      when Integer then return if INTEGERS.cover?(value)
      when Array then return value.each { |item| check(item, depth - 1) } if depth.positive?
      when Hash then return value.each_pair { |pair| check(pair, depth) } if depth.positive?
      end
      raise Failure.new("bad-value", "this cannot travel: #{value.class} #{value.inspect[0, 100]}")
    end
  end

  # An event while its handler runs, and what that does. The run takes it over if the handler succeeds.
  class Event
    attr_reader :name, :key, :data, :emits, :replies, :size

    def initialize(run, index, name, key, data)
      @run, @index, @name, @key, @data = run, index, name, key, data
      @emits, @replies, @size = [], [], 0
    end

    def id = @run.id_of(@index)
    def attempt = @run.attempt
    def created = @run.created
    def progress = @run.worker.tell([BEAT]) # it takes long, but it is alive: its timeout starts anew

    # Without key: it has that of this event; key: nil is none. delay: seconds.
    def emit(name, data = nil, key: :inherited, delay: nil)
      known = @run.worker.known
      raise Failure.new("unknown-event", "it emits '#{name}'; known are #{known.keys.join(', ')}") unless known[name.to_s]

      @emits << [@index, name.to_s, pack(data), travelling(key), delay ? micros(delay) : -1]
    end

    # A line for the log: debug, info, warning, error or critical.
    def log(level, text) = $stderr.mark(level, "#{text.tr("\n", ' ')}\n")

    # Answer whoever waits for this event, or for one that it comes from.
    def reply(data, final: true) = @replies << [@index, pack(data), final]

    # What is stored for the event's key: a copy, of which is stored what has changed when the handler returns.
    def state
      raise Failure.new("bad-state", "an event without a key has no state") if @key.nil?

      @state ||= @run.stored(@key).transform_values(&:value)
    end

    # The states that have changed, encoded; nil: it was deleted.
    def changes
      return {} unless @state

      unknown = @state.keys - @run.node.states.keys
      raise Failure.new("bad-state", "the node has no state #{unknown[0].inspect}") if unknown.any?

      stored = @run.stored(@key)
      now = @state.transform_values { |value| pack(value) }
      now.reject { |name, packed| packed == stored[name] }.merge((stored.keys - now.keys).to_h { |name| [name, nil] })
    end

    # Whoever keeps the event cannot emit with it any more.
    def close = [@emits, @replies].each(&:freeze)

    private

    # At once: what the handler does with the value later changes nothing.
    def pack(value)
      Values.check(value)
      packed = Values::Packed.new(Values.dump(value))
      size, limits = packed.bytes.bytesize, @run.worker.limits
      raise Failure.new("too-large", "a value of #{size} bytes is over max-event") if size > limits["max_event"]

      @size += size
      raise Failure.new("too-large", "the effects of one event are over max-result") if @size > limits["max_result"]

      packed
    end

    def travelling(key)
      return key == :inherited ? nil : false if key.nil? || key == :inherited

      text = key.is_a?(String) ? key.encode(Encoding::UTF_8) : ""
      return text if text.valid_encoding? && text.bytesize.between?(1, 4096)

      raise Failure.new("bad-key", "a key is text of 1 to 4096 bytes of UTF-8, not #{key.inspect[0, 100]}")
    end

    def micros(seconds)
      micros = Float(seconds) * 1_000_000
      return micros.round if (0..MAX_DELAY).cover?(micros)

      raise Failure.new("bad-delay", "a delay is a number of seconds, not #{seconds}")
    end
  end

  # Events of one node, and what they have done since it was last handed in.
  class Run
    attr_reader :worker, :node, :attempt

    def initialize(worker, node, message)
      @worker, @node, @stored = worker, node, {}
      _, _, @count, @names, @keys, @data, @prefix, @first, @ids, @created, @attempt, @states = message
      @attempt ||= 1 # fields at the end may be left out
      start_anew
    end

    # In their order, up to the first that fails.
    def work
      @count.times do |index|
        failed = attempt_at(index)
        return hand_in(failed) if failed

        hand_in if due? && index + 1 < @count
      end
      hand_in
    end

    def created = Time.at(0, @created.to_i, :microsecond)
    def id_of(index) = @ids ? @ids[index] : "#{@prefix}#{@first.to_i + index}"

    # The states of a key, encoded, so that no handler can change them in place.
    def stored(key)
      @stored[key] ||= (@states&.fetch(key, nil) || {}).transform_values { |value| Values::Packed.new(Values.dump(value)) }
    end

    private

    def start_anew
      @events, @size, @emits, @replies, @changes = 0, 0, [], [], {}
      @since = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end

    def due?
      @size > HAND_IN_BYTES || Process.clock_gettime(Process::CLOCK_MONOTONIC) - @since > HAND_IN_SECONDS
    end

    # Returns the fields of Failed, or nil. What a failed event has done is forgotten with it.
    def attempt_at(index)
      name = @names.fetch(@names.size == 1 ? 0 : index)
      event = Event.new(self, index, name, @keys && @keys[index], @data && @data[index])
      @events += 1
      @node.handlers.fetch(name).call(event)
      take(event, event.changes)
    rescue *FAILURES => e
      [index, *Grape.describe(e)]
    ensure
      event.close
    end

    def take(event, changes)
      @emits.concat(event.emits)
      @replies.concat(event.replies)
      @size += event.size
      return if changes.empty?

      (@changes[event.key] ||= {}).merge!(changes)
      @stored[event.key] = stored(event.key).merge(changes).compact
      nil
    end

    def hand_in(failed = nil)
      states = @changes.map { |key, values| [key, values.compact, values.keys - values.compact.keys] }
      @worker.tell([RAN, @events, columns, states, @replies, failed])
      start_anew
    end

    def columns
      return [[], [], []] if @emits.empty?

      origins, names, data, keys, delays = @emits.transpose
      [origins, names.uniq.one? ? [names[0]] : names, data, keys, delays]
    end
  end

  # Kind, text and trace of a failure. The trace has the user's own lines.
  def self.describe(error)
    message = readable(error.message)
    own = error.backtrace.to_a.reject { |line| line.start_with?(__FILE__) }
    trace = readable(["#{message} (#{error.class})", *own].join("\n    from "))
    text = message.strip[/.*/]
    error.is_a?(Failure) ? [error.kind, text, trace] : [error.class.to_s, "#{error.class}: #{text}", trace]
  end

  # Messages may be of any encoding; what travels is UTF-8.
  def self.readable(text)
    text = text.dup.force_encoding(Encoding::UTF_8) if text.encoding == Encoding::BINARY
    text.encode(Encoding::UTF_8, invalid: :replace, undef: :replace).scrub[0, 16_000]
  end

  # Standard output or error: each line says which node has written it. StringIO does puts, print, << .. by write.
  class Marked < StringIO
    def initialize(io, worker)
      super()
      @io, @worker, @line = io, worker, String.new
      at_exit { write("\n") unless @line.empty? }
    end

    def write(*texts)
      texts.each { |text| @line << text.to_s.b }
      while (line = @line.slice!(/\A.*\n/n))
        mark("", line)
      end
      texts.sum { |text| text.to_s.bytesize }
    end

    def putc(char) = write(char.is_a?(Integer) ? char.chr : char[0])

    def mark(level, line)
      name = @worker.node&.name
      @io.write((name ? "\x1e#{level}\x1e#{name}\x1e".b : "".b) + line.b)
    end
  end

  # states: name -> seconds that a value lives, or nil. handlers: name of an event -> block.
  Node = Struct.new(:name, :states, :handlers)

  #   Grape::Worker.run do |worker|
  #     worker.slot("word", node: "Count", states: ["seen"]) { |event| event.emit("total", 1) }
  #   end
  class Worker
    attr_reader :config, :limits, :known, :node

    # Declares in the block; then serves until Grape says to stop, and exits.
    def self.run(argv = ARGV, &block) = new(argv.each_cons(2).to_h).serve(&block)

    def initialize(options)
      abort 'This is a worker of Grape: t.add_pool(NAME, runtime="exec", entry=FILE)' unless options["--fd"]
      @socket = Socket.for_fd(Integer(options["--fd"]))
      @socket.close_on_exec = true # what a handler starts must not keep it open
      @parent = Integer(options.fetch("--parent", 0))
      @config = options["--config-fd"] ? JSON.parse(IO.for_fd(Integer(options["--config-fd"]), autoclose: false).read) : {}
      @nodes, @slots, @setup, @teardown = {}, [], [], []
    end

    # Hand every event of this name to the block. states: names, or a hash of names and seconds that a value lives.
    def slot(event, node:, states: {}, emits: [], retries: nil, backoff: nil, backoff_max: nil, timeout: nil,
             on_fail: nil, ordered: nil, rate: nil, burst: nil, &handler)
      here = @nodes[node] ||= Node.new(node, {}, {})
      raise ArgumentError, "node '#{node}' listens to '#{event}' already" if here.handlers.key?(event)

      states.each { |name, ttl| here.states[name] = ttl }
      here.handlers[event] = method_of(handler, "#{event} at #{node}")
      emits, where = Array(emits), handler.source_location.join(":")
      @slots << { event:, node:, emits:, retries:, backoff:, backoff_max:, timeout:, on_fail:, ordered:, rate:, burst:,
                  where: }.compact
    end

    # Called before the first event, and after the last one.
    def setup(&block) = @setup << block
    def teardown(&block) = @teardown << block

    def serve
      $stdout.sync = true # whatever ends it, nothing is lost that was printed
      trap("INT", "IGNORE") # Ctrl-C is the engine's business
      exit unless @parent.zero? || Process.ppid == @parent
      or_refuse { yield self }
      nodes = @nodes.map { |name, node| { name:, states: node.states.map { |state, ttl| { name: state, ttl: } } } }
      tell([HELLO, PROTOCOL, Process.pid, "ruby", { name: "", nodes:, slots: @slots, outputs: [], pools: [] }, ["base"]])
      while (message = receive) && message[0] != DRAIN
        obey(message)
      end
      @teardown.each(&:call)
      exit
    end

    def tell(message)
      packed = Values.dump(message)
      @socket.write([packed.bytesize].pack("V") + packed)
    rescue Errno::EPIPE, Errno::ECONNRESET
      exit! 0 # Grape has gone
    end

    private

    # `return` in a block would leave what the block stands in, and end the worker; in a method it ends the handler.
    def method_of(handler, name)
      owner = handler.binding.receiver
      owner.method(owner.define_singleton_method(name, &handler))
    end

    # nil: the stream has ended.
    def receive
      size = @socket.read(4)&.unpack1("V") or return
      raise "a frame of #{size} bytes; the limit is #{MAX_FRAME}" if size > MAX_FRAME

      packed = @socket.read(size)
      Values.load(packed) if packed&.bytesize == size
    end

    def obey(message)
      case message[0]
      when RUN then run(message)
      when WELCOME then welcome(*message.values_at(1, 5, 11))
      else raise "a message with the tag #{message[0].inspect}"
      end
    end

    def welcome(version, limits, app)
      raise "Grape speaks protocol #{version}, this worker #{PROTOCOL}" if version != PROTOCOL

      @limits = { "max_event" => 8 << 20, "max_result" => 64 << 20, **limits }
      @known = [*app["slots"].to_a.map { |slot| slot["event"] }, *app["outputs"]].to_h { |name| [name, true] }
      $stdout, $stderr = Marked.new($stdout, self), Marked.new($stderr, self)
      or_refuse { @setup.each(&:call) }
      tell([BEAT]) # it is ready
    end

    def run(message)
      @node = @nodes.fetch(message[1])
      Run.new(self, @node, message).work
    ensure
      @node = nil
    end

    # What is refused, the engine shows to the author.
    def or_refuse
      yield
    rescue *FAILURES => e
      tell([REFUSAL, "start", Grape.describe(e).last])
      exit! 1
    end
  end
end
