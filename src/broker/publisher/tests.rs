use super::super::testing::{FakeBroker, LONG, Published, Reply, fault, queue};
use super::super::{FaultKind, Scope};
use super::*;

fn lost() -> Fault {
    fault(Scope::Connection, FaultKind::Lost, "cut")
}

fn publish(publisher: &mut Publisher<u32>, number: u32) -> std::result::Result<(), Fault> {
    publish_bytes(publisher, number, 10)
}

fn publish_bytes(
    publisher: &mut Publisher<u32>,
    number: u32,
    bytes: usize,
) -> std::result::Result<(), Fault> {
    let properties = Properties::default().with_id(&number.to_string());
    publisher.publish("q", &Body::new(vec![0; bytes]), &properties, number)
}

fn wait(publisher: &mut Publisher<u32>) -> Wake<(), ()> {
    publisher.wait(None, &never(), Some(Instant::now() + LONG))
}

/// What is settled by the time that nothing is outstanding.
fn settle_all(publisher: &mut Publisher<u32>) -> Vec<(u32, Settlement)> {
    let mut settled = publisher.take_settled();
    while publisher.outstanding() > 0 {
        assert!(matches!(wait(publisher), Wake::Settled));
        settled.extend(publisher.take_settled());
    }
    settled
}

#[test]
fn each_publish_is_settled_as_the_broker_says() {
    let broker = FakeBroker::new();
    broker.answer(|published| match published.properties.id() {
        "1" => Reply::Nack,
        "2" => Reply::Return,
        "3" => Reply::Nothing,
        _ => Reply::ConfirmAll,
    });
    let mut publisher = broker.open().unwrap();
    for number in 1..=4 {
        publish(&mut publisher, number).unwrap();
    }
    let (nacked, returned) = (Settlement::Nacked, Settlement::Unroutable);
    let expected = [(1, nacked), (2, returned), (3, Settlement::Confirmed), (4, Settlement::Confirmed)];
    assert_eq!(settle_all(&mut publisher), expected);
    let tags: Vec<_> = broker.published().iter().map(|Published { tag, .. }| *tag).collect();
    assert_eq!(tags, [1, 2, 3, 4]);
}

#[test]
fn what_came_before_the_end_still_counts() {
    // Which of the channels that have closed is noticed first is a matter of chance.
    for _ in 0..50 {
        let broker = FakeBroker::new();
        broker.answer(|published| match published.properties.id() {
            "1" => Reply::Confirm,
            "2" => Reply::Nothing,
            _ => Reply::End(lost()),
        });
        let mut publisher = broker.open().unwrap();
        for number in 1..=3 {
            publish(&mut publisher, number).unwrap();
        }
        assert!(matches!(wait(&mut publisher), Wake::Settled));
        assert_eq!(publisher.take_settled(), [(1, Settlement::Confirmed)]);
        let Wake::Lost(told) = wait(&mut publisher) else { panic!("it is lost") };
        assert_eq!(told, lost());
        assert!(publisher.take_settled().is_empty());
        assert_eq!(publisher.take_unsettled(), [2, 3]);
    }
}

#[test]
fn a_publish_that_meets_the_end_is_among_the_unsettled() {
    let broker = FakeBroker::new();
    let mut publisher = broker.open().unwrap();
    broker.end(&lost());
    assert_eq!(publish(&mut publisher, 1), Err(lost()));
    assert_eq!(publisher.take_unsettled(), [1]);
}

#[test]
fn a_confirm_is_due_unless_publishing_is_blocked_and_anew_after_that() {
    let broker = FakeBroker::new();
    broker.answer(|_| Reply::Nothing);
    let mut publisher = broker.open().unwrap();
    assert_eq!(publisher.due(), None);
    let before = Instant::now();
    publish(&mut publisher, 1).unwrap();
    let first = publisher.due().unwrap();
    assert!(first >= before + LONG && first <= Instant::now() + LONG);
    // Large bodies may take their time on the line.
    publish_bytes(&mut publisher, 2, 10 * SLOWEST_LINE).unwrap();
    assert!(publisher.due().unwrap() >= first + Duration::from_secs(10));
    broker.confirm(2);
    assert!(matches!(wait(&mut publisher), Wake::Settled));
    assert_eq!(publisher.due(), Some(first));

    broker.block("memory");
    assert!(matches!(wait(&mut publisher), Wake::Blocked(why) if why == "memory"));
    assert_eq!((publisher.due(), publisher.why_blocked()), (None, Some("memory")));
    let before = Instant::now();
    broker.unblock();
    assert!(matches!(wait(&mut publisher), Wake::Unblocked));
    assert!(!publisher.is_blocked() && publisher.due().unwrap() >= before + LONG);
    broker.confirm(1);
    assert_eq!(settle_all(&mut publisher).len(), 2);
    assert_eq!(publisher.due(), None);
}

#[test]
fn a_probe_finds_out_whether_the_broker_takes_publishes() {
    let broker = FakeBroker::new();
    let mut publisher: Publisher<u32> = broker.open().unwrap();
    assert!(matches!(publisher.probe(), Ok(Publishing::Works)));
    // It is nobody's, and there is nothing of it to take.
    assert!(publisher.take_settled().is_empty() && publisher.outstanding() == 0);

    broker.block("disk");
    let mut publisher: Publisher<u32> = broker.open().unwrap();
    assert!(matches!(publisher.probe(), Ok(Publishing::Blocked(why)) if why == "disk"));
    assert!(publisher.is_blocked());
    broker.unblock();

    broker.patience(LONG, Duration::from_millis(1));
    broker.answer_probes(Reply::Nothing);
    let mut publisher: Publisher<u32> = broker.open().unwrap();
    assert!(matches!(publisher.probe(), Ok(Publishing::Unknown)));

    let refused = fault(Scope::Channel, FaultKind::Refused, "no");
    broker.answer_probes(Reply::End(refused.clone()));
    let mut publisher: Publisher<u32> = broker.open().unwrap();
    assert_eq!(publisher.probe().err(), Some(refused));
}

#[test]
fn a_large_body_is_handed_over_and_nothing_is_published_beside_it() {
    let broker = FakeBroker::new();
    broker.answer(|_| Reply::NotRead);
    let mut publisher = broker.open().unwrap();
    publish_bytes(&mut publisher, 1, ROOM).unwrap();
    assert!(publisher.is_busy());
    // It meets the same end as all the rest.
    broker.end(&lost());
    assert!(matches!(wait(&mut publisher), Wake::Lost(told) if told == lost()));
    assert_eq!(publisher.take_unsettled(), [1]);

    broker.answer(|_| Reply::Confirm);
    let mut publisher = broker.open().unwrap();
    publish_bytes(&mut publisher, 1, ROOM).unwrap();
    while publisher.is_busy() || publisher.outstanding() > 0 {
        assert!(matches!(wait(&mut publisher), Wake::Settled));
    }
    assert_eq!(publisher.take_settled(), [(1, Settlement::Confirmed)]);
    // Small ones that together have no room are no different.
    broker.answer(|_| Reply::Nothing);
    publish_bytes(&mut publisher, 2, ROOM - 1000).unwrap();
    assert!(!publisher.is_busy());
    publish_bytes(&mut publisher, 3, 1000).unwrap();
    assert!(publisher.is_busy());
}

#[test]
fn a_queue_that_was_made_sure_of_is_trusted_until_a_message_comes_back() {
    let broker = FakeBroker::new();
    let mut publisher: Publisher<u32> = broker.open().unwrap();
    let dead = queue().dead();
    assert_eq!(publisher.prepare(&dead, false), Ok(false));
    assert_eq!(publisher.prepare(&dead, false), Ok(false));
    assert_eq!(broker.declared(), ["q.dead"]);
    publisher.forget_prepared();
    broker.prepare(|_| Ok(true));
    assert_eq!(publisher.prepare(&dead, true), Ok(true));
    let missing = Fault::missing("q.dead");
    broker.prepare(move |_| Err(Fault::missing("q.dead")));
    assert_eq!(publisher.look_at(&dead), Err(missing));
}

#[test]
fn another_channel_starts_with_nothing_outstanding() {
    let broker = FakeBroker::new();
    broker.answer(|_| Reply::End(Fault::missing("q")));
    let mut publisher = broker.open().unwrap();
    publish(&mut publisher, 1).unwrap();
    assert!(matches!(wait(&mut publisher), Wake::Lost(told) if told == Fault::missing("q")));
    broker.answer(|_| Reply::Confirm);
    let mut publisher = publisher.recover(&queue()).unwrap();
    publish(&mut publisher, 2).unwrap();
    assert_eq!(settle_all(&mut publisher), [(2, Settlement::Confirmed)]);
    let where_to: Vec<_> = broker.published().iter().map(|one| (one.connection, one.tag)).collect();
    assert_eq!((where_to.as_slice(), broker.declared()), ([(1, 1), (1, 1)].as_slice(), vec!["q".to_owned()]));
}
