//! Programs that nobody here wrote: Debian's amqp-tools (rabbitmq-c) and Python's pika, in both directions.

use crate::support::{Finished, Invocation, Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;

/// Debian's own interpreter, whatever the caller's PATH says: its package is the pika that is tested with.
const PYTHON: &str = "/usr/bin/python3";

fn python(sandbox: &Sandbox, program: &str, args: &[&str]) -> Invocation {
    let start = ["-u", "-c", program, sandbox.url(), &sandbox.queue];
    sandbox.program(PYTHON, start.iter().chain(args))
}

fn amqp_tool(sandbox: &Sandbox, tool: &str, args: &[&str]) -> Invocation {
    sandbox.program(tool, ["--url", sandbox.url()].iter().chain(args))
}

/// A worker takes the one task that is there, and ends.
fn worked(sandbox: &Sandbox) -> Finished {
    sandbox.taskq(["work", "--until-empty"]).run().exits(0)
}

#[test]
fn what_amqp_publish_sends_is_worked() {
    let sandbox = Sandbox::new();
    let args = ["--durable", "--queue", &sandbox.queue];
    amqp_tool(&sandbox, "amqp-declare-queue", &args).run().exits(0);
    let args = ["--routing-key", &sandbox.queue, "--persistent", "--body", "from C."];
    amqp_tool(&sandbox, "amqp-publish", &args).run().exits(0);
    worked(&sandbox).says("Received a message: from C.\nDone\n");
}

#[test]
fn amqp_get_gets_what_was_sent() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "to C"]).run().exits(0);
    let got = amqp_tool(&sandbox, "amqp-get", &["--queue", &sandbox.queue]).run().exits(0);
    assert_eq!(got.stdout_text(), "to C");
}

#[test]
fn amqp_consume_consumes_what_was_sent() {
    let sandbox = Sandbox::new();
    let bodies = sandbox.taskq(["send", "--lines"]).feed("one\ntwo\n");
    bodies.exits(0);
    let args = ["--queue", &sandbox.queue, "--count", "2", "sed", "s/$/;/"];
    let consumed = amqp_tool(&sandbox, "amqp-consume", &args).run().exits(0);
    assert_eq!(consumed.stdout_text().replace('\n', ""), "one;two;");
}

/// The tutorial's new_task.py, for any queue.
const NEW_TASK: &str = r"
import pika, sys
connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.queue_declare(queue=sys.argv[2], durable=True)
message = ' '.join(sys.argv[3:]) or 'Hello World!'
channel.basic_publish(exchange='', routing_key=sys.argv[2], body=message,
    properties=pika.BasicProperties(delivery_mode=2))
print(' [x] Sent %r' % message)
connection.close()
";

/// The tutorial's worker.py, for any queue.
const WORKER: &str = r"
import pika, sys, time
connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
channel.queue_declare(queue=sys.argv[2], durable=True)
print(' [*] Waiting for messages', file=sys.stderr)
def callback(ch, method, properties, body):
    print(' [x] Received %r' % body.decode(), file=sys.stderr)
    time.sleep(body.count(b'.'))
    print(' [x] Done', file=sys.stderr)
    ch.basic_ack(delivery_tag=method.delivery_tag)
channel.basic_qos(prefetch_count=1)
channel.basic_consume(queue=sys.argv[2], on_message_callback=callback)
channel.start_consuming()
";

fn pika_worker(sandbox: &Sandbox) -> Process {
    let worker = python(sandbox, WORKER, &[]).start();
    worker.says("[*] Waiting");
    worker
}

#[test]
fn tasks_of_the_tutorials_new_task_are_worked() {
    let sandbox = Sandbox::new();
    python(&sandbox, NEW_TASK, &["from", "Python."]).run().exits(0);
    worked(&sandbox).says("Received a message: from Python.\nDone\n");
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}

#[test]
fn the_tutorials_worker_works_what_was_sent() {
    let sandbox = Sandbox::new();
    let worker = pika_worker(&sandbox);
    sandbox.taskq(["send", "to", "Python."]).run().exits(0);
    worker.says("[x] Received 'to Python.'\n [x] Done\n");
    sandbox.broker().wait_ready(&sandbox.queue, 0);
}

#[test]
fn the_tutorials_worker_and_taskq_share_a_queue() {
    let sandbox = Sandbox::new();
    let (theirs, ours) = (pika_worker(&sandbox), sandbox.worker([""; 0]));
    sandbox.broker().wait_consumers(&sandbox.queue, 2);
    sandbox.taskq(["send", "--lines"]).feed("1 .\n2 .\n3 .\n4 .\n").exits(0);
    theirs.says_times("[x] Done", 2);
    ours.says_times("Done", 2);
    ours.signal(SIGTERM);
    ours.end().exits(0);
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}

#[test]
fn a_task_that_the_tutorials_worker_died_of_is_worked_here() {
    let sandbox = Sandbox::new();
    let theirs = pika_worker(&sandbox);
    sandbox.taskq(["send", "inherited .............................."]).run().exits(0);
    theirs.says("[x] Received 'inherited");
    drop(theirs);
    let ours = sandbox.worker([""; 0]);
    ours.says("Received a message: inherited");
}

#[test]
fn pika_sees_the_properties_as_they_are() {
    const PRINT: &str = r"
import pika, sys, uuid
channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
method, properties, body = channel.basic_get(sys.argv[2], auto_ack=True)
print(body, properties.delivery_mode, properties.content_type, properties.app_id, properties.priority,
    properties.expiration, properties.headers, uuid.UUID(properties.message_id).version, properties.timestamp > 1e9)
";
    let sandbox = Sandbox::new();
    let options = ["--priority", "4", "--expires", "1h", "--header", "a=b", "--content-type", "text/x"];
    sandbox.taskq(["send", "--file", "-"].iter().chain(&options)).feed(b"\0\xff\n").exits(0);
    let printed = python(&sandbox, PRINT, &[]).run().exits(0);
    assert_eq!(printed.stdout_text(), "b'\\x00\\xff\\n' 2 text/x taskq 4 3600000 {'a': 'b'} 7 True\n");
}

#[test]
fn headers_of_every_type_that_pika_sends_do_not_stop_a_worker() {
    const PUBLISH: &str = r"
import pika, sys, datetime, decimal
channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
channel.queue_declare(queue=sys.argv[2], durable=True)
headers = {'int': 1, 'big': 2**40, 'negative': -5, 'bool': True, 'none': None, 'text': 'ü',
    'bytes': b'\xff\xfe', 'list': [1, 'a', {'b': None}], 'table': {'x': {'y': 1}}, 'decimal': decimal.Decimal('1.5'),
    'time': datetime.datetime(2020, 1, 1), 'long': 'x' * 5000}
for name, value in headers.items():
    channel.basic_publish('', sys.argv[2], 'header ' + name, pika.BasicProperties(headers={name: value}))
channel.basic_publish('', sys.argv[2], 'the last', pika.BasicProperties(headers=headers, message_id='x' * 255,
    correlation_id='c', reply_to='r', type='t', user_id='guest', app_id='a', cluster_id=''))
";
    let sandbox = Sandbox::new();
    python(&sandbox, PUBLISH, &[]).run().exits(0);
    let worked = worked(&sandbox).says("Received a message: the last\nDone\n");
    assert_eq!(worked.stderr.matches("Done").count(), 13);
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}
