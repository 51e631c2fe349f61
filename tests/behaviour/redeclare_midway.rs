//! A broker that refuses the declaration while the first publish is on its way. As RabbitMQ does, it ends the connection
//! if the answer to the close of the channel comes in the middle of a content.

use std::io::{self, Read, Write};

use crate::support::Sandbox;
use crate::support::amqp::{self, CHANNEL_CLOSE_OK, FRAME_BODY, FRAME_HEADER};
use crate::support::script::{Script, hold};

const REFUSED: &str = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'queue' in vhost '/': received \
                       none but current is the value 'quorum' of type 'longstr'";

/// Reads the rest of a content and the answer to the close; whether the content was whole.
fn ends_whole(stream: &mut impl Read) -> io::Result<bool> {
    let header = amqp::read_frame(stream)?;
    if header.kind != FRAME_HEADER {
        return Ok(false);
    }
    let mut missing = u64::from_be_bytes(header.payload[4..12].try_into().unwrap());
    loop {
        let frame = amqp::read_frame(stream)?;
        if frame.kind != FRAME_BODY {
            return Ok(missing == 0 && frame.method() == Some(CHANNEL_CLOSE_OK));
        }
        missing -= frame.payload.len() as u64;
    }
}

#[test]
fn a_publish_that_a_refused_declaration_overtakes_does_not_cost_the_connection() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| {
        let publish = amqp::play_until(stream, amqp::PUBLISH)?;
        stream.write_all(&amqp::channel_close(publish.channel, 406, REFUSED))?;
        if !ends_whole(stream)? {
            stream.write_all(&amqp::connection_close(505, "UNEXPECTED_FRAME - a content that breaks off"))?;
            return hold(stream);
        }
        amqp::serve_with(stream, |frame| {
            (frame.kind == FRAME_BODY).then(|| amqp::confirm(frame.channel, 1, false))
        })
    });
    // So many take a while to be written: the method has gone out long before the content header is there.
    let headers = (0..400).flat_map(|number| ["--header".to_owned(), format!("k{number}=v")]);
    let args = ["send".to_owned(), "hello".to_owned()].into_iter().chain(headers);
    sandbox.taskq(args).env("TASKQ_URL", server.url()).run().exits(0).never_says("is down");
    assert_eq!(server.connections(), 1);
}
