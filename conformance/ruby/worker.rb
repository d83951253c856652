#!/usr/bin/env ruby
# frozen_string_literal: true

# The conformance app in Ruby: docs/conformance.md says what each node does.

require_relative "grape"

Grape::Worker.run do |worker|
  worker.slot("echo", node: "Echo") { |event| event.emit("out", event.data) }

  worker.slot("count", node: "Count", states: ["count"]) do |event|
    event.state["count"] = event.state.fetch("count", 0) + 1
    event.emit("out", event.state["count"])
  end

  worker.slot("store", node: "Store", states: ["value"]) do |event|
    event.emit("out", event.state["value"])
    event.state["value"] = event.data
  end

  worker.slot("erase", node: "Store") { |event| event.emit("out", event.state.delete("value")) }

  worker.slot("fail", node: "Fail") { |event| raise ArgumentError, event.data }

  %w[odd second].each do |name|
    worker.slot(name, node: "Odd", states: ["count"]) do |event|
      event.state["count"] = event.state.fetch("count", 0) + 1
      event.emit("out", [event.data, event.state["count"]])
      raise ArgumentError, "odd" if event.data.odd?
    end
  end

  worker.slot("first", node: "First", states: ["count"], emits: "second") do |event|
    key, data = event.data
    event.state["count"] = event.state.fetch("count", 0) + 1
    event.emit("second", data, key: key)
    raise ArgumentError, "first" if data.negative?
  end

  worker.slot("who", node: "Who") { |event| event.emit("out", [event.id, event.attempt]) }

  worker.slot("many", node: "Many") { |event| event.data.times { |i| event.emit("out", i) } }

  worker.slot("send", node: "Send") do |event|
    key, data = event.data
    event.emit("echo", data, key: key)
  end

  worker.slot("answer", node: "Answer") { |event| event.reply(event.data) }

  worker.slot("later", node: "Later") do |event|
    delay, data = event.data
    event.emit("out", data, delay: delay)
  end

  worker.slot("paced", node: "Paced", rate: 10, burst: 3, timeout: 1) { |event| event.emit("out", event.data) }

  worker.slot("hurry", node: "Hurry", emits: "paced") { |event| event.emit("paced", event.data) }

  worker.slot("sleep", node: "Sleep", timeout: 1) do |event|
    sleep event.data
    event.emit("out", event.data)
  end

  worker.slot("unknown", node: "Unknown") { |event| event.emit("nowhere", event.data) }

  worker.slot("say", node: "Say") { |event| puts event.data }

  worker.slot("die", node: "Die") { |_event| exit! 3 }
end
