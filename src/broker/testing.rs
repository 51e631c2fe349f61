//! A broker that a test plays, for whoever publishes. It takes publishes, records them, and answers each as it is told.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Confirm, ConfirmPayload, ConnectionBlockedNotification, Return};
use crossbeam_channel::{Receiver, Sender, never, unbounded};

use super::line::{AnswerPatience, Line, Opened};
use super::{
    Body, Fault, FaultKind, Properties, Publisher, QueueSpec, QueueType, Role, Scope, SessionOptions,
    TlsFiles,
};
use crate::error::{Error, Result};
use crate::lock::lock;

/// Far more than anything here takes, far less than a person would wait.
pub const LONG: Duration = Duration::from_secs(30);

const PATIENT: AnswerPatience = AnswerPatience { confirm: LONG, probe: LONG };

/// What becomes of a publish.
#[derive(Clone)]
pub enum Reply {
    Confirm,
    Nack,
    /// No queue takes it.
    Return,
    /// Nothing is ever said of it, unless the test does.
    Nothing,
    /// It confirms that, and everything before it, in one.
    ConfirmAll,
    /// The channel or the connection ends, without a word of this one.
    End(Fault),
    /// The same, and the call that publishes already tells.
    Fail(Fault),
    /// A large body is not read to its end.
    NotRead,
}

/// A publish that arrived.
#[derive(Clone)]
pub struct Published {
    /// Connections are numbered from 1.
    pub connection: usize,
    /// On its channel, from 1.
    pub tag: u64,
    pub queue: String,
    pub body: Body,
    pub properties: Properties,
    pub at: Instant,
}

impl Published {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

type Answer = Box<dyn FnMut(&Published) -> Reply + Send>;
type Declared = Box<dyn FnMut(&QueueSpec) -> std::result::Result<bool, Fault> + Send>;

/// See the module. Its clones are the same broker.
#[derive(Clone)]
pub struct FakeBroker(Arc<(Mutex<State>, Condvar)>);

struct State {
    channels: Vec<Channel>,
    connections: usize,
    published: Vec<Published>,
    declared: Vec<String>,
    alarm: Option<String>,
    refuses: Option<Error>,
    answer: Answer,
    probe: Reply,
    prepare: Arc<Mutex<Declared>>,
    patience: AnswerPatience,
}

/// A channel for publishing, and its connection.
struct Channel {
    confirms: Option<Sender<Confirm>>,
    returns: Option<Sender<Return>>,
    blocked: Option<Sender<ConnectionBlockedNotification>>,
    /// Of the last publish.
    tag: u64,
    /// What came during an alarm.
    unread: Vec<Published>,
    knows_of_alarm: bool,
    handover: Option<Sender<std::result::Result<(), Fault>>>,
    ended: Option<Fault>,
}

impl FakeBroker {
    /// Confirms whatever it gets.
    pub fn new() -> Self {
        let state = State {
            channels: Vec::new(),
            connections: 0,
            published: Vec::new(),
            declared: Vec::new(),
            alarm: None,
            refuses: None,
            answer: Box::new(|_| Reply::Confirm),
            probe: Reply::Return,
            prepare: Arc::new(Mutex::new(Box::new(|_| Ok(false)))),
            patience: PATIENT,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.0)
    }

    /// From now on publishes are answered so.
    pub fn answer(&self, answer: impl FnMut(&Published) -> Reply + Send + 'static) {
        self.state().answer = Box::new(answer);
    }

    /// From now on, what [`Publisher::probe`] publishes is answered so.
    pub fn answer_probes(&self, reply: Reply) {
        self.state().probe = reply;
    }

    /// From now on, whoever makes sure of a queue is told this: whether it was gone.
    pub fn prepare(
        &self,
        prepare: impl FnMut(&QueueSpec) -> std::result::Result<bool, Fault> + Send + 'static,
    ) {
        self.state().prepare = Arc::new(Mutex::new(Box::new(prepare)));
    }

    /// Lets nobody in, for this reason.
    pub fn refuse(&self, why: Option<Error>) {
        self.state().refuses = why;
    }

    /// How long a confirm and the answer to a probe are waited for, on the next connection.
    pub fn patience(&self, confirm: Duration, probe: Duration) {
        self.state().patience = AnswerPatience { confirm, probe };
    }

    /// Opens a connection, as [`Publisher::open_verified`] does.
    pub fn open<T>(&self) -> Result<Publisher<T>> {
        Ok(Publisher::on(self.channel(self.connect()?)))
    }

    /// Opens a connection, as [`Publisher::open_optimistic`] does.
    pub fn open_optimistic<T>(&self) -> Result<Publisher<T>> {
        Ok(Publisher::on(Opened { queue_verified: false, ..self.channel(self.connect()?) }))
    }

    fn connect(&self) -> Result<usize> {
        let mut state = self.state();
        state.connections += 1;
        self.0.1.notify_all();
        state.refuses.clone().map_or(Ok(state.connections), Err)
    }

    fn channel(&self, connection: usize) -> Opened {
        let (confirms_in, confirms) = unbounded();
        let (returns_in, returns) = unbounded();
        let (blocked_in, blocked) = unbounded();
        let mut state = self.state();
        state.channels.push(Channel {
            confirms: Some(confirms_in),
            returns: Some(returns_in),
            blocked: Some(blocked_in),
            tag: 0,
            unread: Vec::new(),
            knows_of_alarm: false,
            handover: None,
            ended: None,
        });
        let number = state.channels.len() - 1;
        let patience = std::mem::replace(&mut state.patience, PATIENT);
        let line = FakeLine { broker: self.clone(), number, connection, handed_over: never(), busy: false };
        Opened {
            line: Box::new(line),
            confirms,
            returns,
            blocked,
            label: "amqp://fake".to_owned(),
            introduction: "amqp://fake (RabbitMQ)".to_owned(),
            frame_max: 131_072,
            patience,
            queue_verified: true,
        }
    }

    /// An alarm: nothing more is read from connections that publish, and those that have published hear of it.
    pub fn block(&self, why: &str) {
        let mut state = self.state();
        state.alarm = Some(why.to_owned());
        for channel in state.channels.iter_mut().filter(|channel| channel.tag > 0) {
            channel.hear_of_alarm(why);
        }
    }

    /// It is over: what came meanwhile is read.
    pub fn unblock(&self) {
        let mut state = self.state();
        state.alarm = None;
        for number in 0..state.channels.len() {
            let channel = &mut state.channels[number];
            if std::mem::take(&mut channel.knows_of_alarm) {
                tell(channel.blocked.as_ref(), ConnectionBlockedNotification::Unblocked);
            }
            for published in std::mem::take(&mut channel.unread) {
                let _ = state.read(number, &published);
            }
        }
        self.0.1.notify_all();
    }

    /// The channel that was opened last ends, and with it its connection where the fault says so.
    pub fn end(&self, fault: &Fault) {
        if let Some(channel) = self.state().channels.last_mut() {
            channel.end(fault);
        }
    }

    /// Confirms a publish on the channel that was opened last.
    pub fn confirm(&self, tag: u64) {
        if let Some(channel) = self.state().channels.last_mut() {
            channel.confirm(tag, false);
        }
    }

    /// What was published so far, probes aside.
    pub fn published(&self) -> Vec<Published> {
        self.state().published.clone()
    }

    /// The same, as the number of the connection and the body.
    pub fn log(&self) -> Vec<(usize, String)> {
        self.published().iter().map(|published| (published.connection, published.text())).collect()
    }

    /// The queues that were made sure of.
    pub fn declared(&self) -> Vec<String> {
        self.state().declared.clone()
    }

    /// How many connections were asked for.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Waits until so many publishes have come.
    pub fn wait_for(&self, count: usize) {
        self.wait_until(&format!("{count} publishes"), |state| state.published.len() >= count);
    }

    /// Waits until this body has come, and returns its tag.
    pub fn wait_for_body(&self, text: &str) -> u64 {
        let find = |state: &State| state.published.iter().find(|one| one.text() == text).map(|one| one.tag);
        self.wait_until(text, |state| find(state).is_some());
        find(&self.state()).unwrap()
    }

    /// Waits until so many queues were asked for.
    pub fn wait_for_declarations(&self, count: usize) {
        self.wait_until(&format!("{count} declarations"), |state| state.declared.len() >= count);
    }

    /// Waits until somebody has tried to connect so many times.
    pub fn wait_for_connections(&self, count: usize) {
        self.wait_until(&format!("{count} connections"), |state| state.connections >= count);
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + LONG;
        let mut state = self.state();
        while !is_so(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} did not come, but {}", state.published.len());
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl State {
    fn arrived(&mut self, number: usize, published: Published) -> std::result::Result<(), Fault> {
        // Probes go to a queue that is named by their id.
        let probes = published.queue == published.properties.id();
        if !probes {
            self.published.push(published.clone());
        }
        if let Some(why) = self.alarm.clone() {
            let channel = &mut self.channels[number];
            channel.hear_of_alarm(&why);
            channel.unread.push(published);
            return Ok(());
        }
        self.read(number, &published)
    }

    fn read(&mut self, number: usize, published: &Published) -> std::result::Result<(), Fault> {
        let probes = published.queue == published.properties.id();
        let reply = if probes { self.probe.clone() } else { (self.answer)(published) };
        self.channels[number].reply(published, reply)
    }
}

impl Channel {
    fn hear_of_alarm(&mut self, why: &str) {
        if !std::mem::replace(&mut self.knows_of_alarm, true) {
            tell(self.blocked.as_ref(), ConnectionBlockedNotification::Blocked(why.to_owned()));
        }
    }

    fn reply(&mut self, published: &Published, reply: Reply) -> std::result::Result<(), Fault> {
        let payload = ConfirmPayload { delivery_tag: published.tag, multiple: false };
        match reply {
            Reply::Confirm => self.confirm(published.tag, false),
            Reply::ConfirmAll => self.confirm(published.tag, true),
            Reply::Nack => tell(self.confirms.as_ref(), Confirm::Nack(payload)),
            Reply::Return => {
                let properties =
                    AmqpProperties::default().with_message_id(published.properties.id().to_owned());
                let returned = Return {
                    reply_code: 312,
                    reply_text: "NO_ROUTE".to_owned(),
                    exchange: String::new(),
                    routing_key: published.queue.clone(),
                    content: Vec::new(),
                    properties,
                };
                tell(self.returns.as_ref(), returned);
                self.confirm(published.tag, false);
            }
            Reply::Nothing => {}
            Reply::NotRead => return Ok(()),
            Reply::End(fault) => self.end(&fault),
            Reply::Fail(fault) => {
                self.end(&fault);
                return Err(fault);
            }
        }
        if let Some(handover) = self.handover.take() {
            let _ = handover.send(Ok(()));
        }
        Ok(())
    }

    fn confirm(&mut self, delivery_tag: u64, multiple: bool) {
        tell(self.confirms.as_ref(), Confirm::Ack(ConfirmPayload { delivery_tag, multiple }));
    }

    fn end(&mut self, fault: &Fault) {
        self.ended.get_or_insert_with(|| fault.clone());
        (self.confirms, self.returns, self.blocked) = (None, None, None);
        if let Some(handover) = self.handover.take() {
            let _ = handover.send(Err(fault.clone()));
        }
    }
}

/// Nobody listens to a connection that was given up.
fn tell<T>(whom: Option<&Sender<T>>, what: T) {
    let _ = whom.map(|whom| whom.send(what));
}

/// The end of [`FakeBroker`]'s connections that a publisher has.
struct FakeLine {
    broker: FakeBroker,
    /// Of its channel.
    number: usize,
    connection: usize,
    handed_over: Receiver<std::result::Result<(), Fault>>,
    busy: bool,
}

impl FakeLine {
    fn end(&self, why: &str) {
        self.broker.state().channels[self.number].end(&Fault::lost(why));
    }
}

impl Line for FakeLine {
    fn publish(
        &mut self,
        queue: &str,
        body: &Body,
        properties: &Properties,
        at_once: bool,
    ) -> std::result::Result<(), Fault> {
        self.ask()?;
        assert!(!self.busy, "published beside a handover");
        let mut state = self.broker.state();
        let channel = &mut state.channels[self.number];
        channel.tag += 1;
        if !at_once {
            let (tell, handed_over) = unbounded();
            channel.handover = Some(tell);
            (self.handed_over, self.busy) = (handed_over, true);
        }
        let (queue, body, properties) = (queue.to_owned(), Body::clone(body), properties.clone());
        let (connection, tag, at) = (self.connection, channel.tag, Instant::now());
        let published = Published { connection, tag, queue, body, properties, at };
        let result = state.arrived(self.number, published);
        self.broker.0.1.notify_all();
        result
    }

    fn is_busy(&self) -> bool {
        self.busy
    }

    fn handed_over(&self) -> &Receiver<std::result::Result<(), Fault>> {
        &self.handed_over
    }

    fn take_back(&mut self) {
        (self.handed_over, self.busy) = (never(), false);
    }

    fn ask(&self) -> std::result::Result<(), Fault> {
        self.broker.state().channels[self.number].ended.clone().map_or(Ok(()), Err)
    }

    fn prepare(&mut self, queue: &QueueSpec, _known: bool) -> std::result::Result<bool, Fault> {
        let mut state = self.broker.state();
        state.declared.push(queue.name.clone());
        let prepare = Arc::clone(&state.prepare);
        self.broker.0.1.notify_all();
        // It may take its time.
        drop(state);
        let result = lock(&prepare)(queue);
        if let Err(fault) = &result
            && fault.scope == Scope::Connection
        {
            self.broker.state().channels[self.number].end(fault);
        }
        result
    }

    fn recover(mut self: Box<Self>, queue: &QueueSpec) -> std::result::Result<Opened, Fault> {
        assert!(!self.busy, "what is handed over would arrive after all");
        self.end("another channel was opened");
        self.prepare(queue, false)?;
        Ok(self.broker.channel(self.connection))
    }

    fn close(self: Box<Self>) {
        self.end("closed");
    }

    fn cut(self: Box<Self>, why: &str) {
        self.end(why);
    }
}

/// A fault of a connection or a channel.
pub fn fault(scope: Scope, kind: FaultKind, words: &str) -> Fault {
    Fault::new(scope, kind, words)
}

/// A task's properties, with more than its id.
pub fn task(id: &str) -> Properties {
    let amqp = AmqpProperties::default().with_message_id(id.to_owned()).with_reply_to("somebody".to_owned());
    Properties::from(amqp).with_headers(&[("Colour".to_owned(), "red".to_owned())])
}

/// A queue of tasks.
pub fn queue() -> QueueSpec {
    QueueSpec { name: "q".to_owned(), role: Role::Tasks, kind: QueueType::Classic, declare: true }
}

/// Options that lead nowhere.
pub fn no_session() -> SessionOptions {
    SessionOptions {
        urls: super::url_list::UrlList::fixed(Vec::new()),
        tls: TlsFiles::default(),
        connect_timeout: None,
        heartbeat: None,
    }
}
