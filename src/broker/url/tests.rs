use super::*;

fn plain(url: &BrokerUrl) -> (&str, &str) {
    match &url.credentials {
        Credentials::Plain { user, password } => (user, password),
        Credentials::External => panic!("expected user and password"),
    }
}

#[test]
fn everything_has_a_default() {
    for text in ["amqp://", "amqp:///", "AMQP://localhost", "amqp://guest:guest@localhost:5672/%2f"] {
        let url = BrokerUrl::parse(text).unwrap();
        assert_eq!((url.host.as_str(), url.port, url.vhost.as_str()), ("localhost", 5672, "/"), "{text}");
        assert_eq!(plain(&url), ("guest", "guest"), "{text}");
    }
    assert_eq!(BrokerUrl::parse("amqps://h").unwrap().port, 5671);
}

#[test]
fn parts_are_taken_apart_and_unescaped() {
    let url = BrokerUrl::parse(
        "amqps://us%65r:p%40ss:w@rd,x@[::1]:99/v%2Fhost?heartbeat=7&connection_timeout=1500&channel_max=9",
    )
    .unwrap();
    assert!(url.tls);
    assert_eq!(plain(&url), ("user", "p@ss:w@rd,x"));
    assert_eq!((url.host.as_str(), url.port), ("::1", 99));
    assert_eq!(url.address(), "[::1]:99");
    assert_eq!(url.vhost, "v/host");
    assert_eq!(url.heartbeat, Some(Duration::from_secs(7)));
    assert_eq!(url.connect_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(url.channel_max, Some(9));
    let external = BrokerUrl::parse("amqps://h?auth_mechanism=external").unwrap();
    assert!(external.credentials == Credentials::External);
}

#[test]
fn wrong_urls_are_refused_without_repeating_the_password() {
    for text in [
        "",
        "localhost",
        "http://guest:s3cret@localhost",
        "amqp://guest:s3cret@localhost:port",
        "amqp://guest:s3cret@localhost:0",
        "amqp://guest:s3cret@localhost:70000",
        "amqp://guest:s3cret%@localhost",
        "amqp://guest:s3cret%zz@localhost",
        "amqp://guest:s3cret%ff@localhost",
        "amqp://guest:s3cret%00@localhost",
        "amqp://guest:s3cret@localhost/a/b",
        "amqp://guest:12/s3cret@localhost",
        "amqp://guest:12?s3cret@localhost",
        "amqp://guest:s3cret#x@localhost",
        "amqp://guest:s3cret?x@localhost",
        "amqp://guest:s3cret@local host",
        "amqp://guest:s3cret@[::1",
        "amqp://guest:s3cret@[nonsense]",
        "amqp://guest:s3cret@[::1]5672",
        "amqp://guest:s3cret@localhost?heartbeat=0",
        "amqp://guest:s3cret@localhost?heartbeat=1.5",
        "amqp://guest:s3cret@localhost?connection_timeout=0",
        "amqp://guest:s3cret@localhost?channel_max=65536",
        "amqp://guest:s3cret@localhost?auth_mechanism=gssapi",
        "amqp://guest:s3cret@localhost?nonsense=1",
    ] {
        let error = BrokerUrl::parse(text).unwrap_err();
        assert_eq!(error.exit, crate::error::Exit::Usage, "{text}");
        assert!(!error.to_string().contains("s3cret"), "{text}: {error}");
    }
    let long = format!("amqp://localhost/{}", "v".repeat(256));
    assert!(BrokerUrl::parse(&long).is_err());
}

#[test]
fn lists_split_only_where_a_url_follows() {
    let urls = BrokerUrl::parse_list("amqp://a:x,y@h1 , amqps://h2,amqp://h3,\n").unwrap();
    let hosts: Vec<_> = urls.iter().map(|url| url.host.as_str()).collect();
    assert_eq!(hosts, ["h1", "h2", "h3"]);
    assert_eq!(plain(&urls[0]), ("a", "x,y"));
    assert!(BrokerUrl::parse_list(" ").is_err());
    assert!(BrokerUrl::parse_list("amqp://a,http://b").is_err());
}

#[test]
fn printing_shows_no_password() {
    let url = BrokerUrl::parse("amqp://me:s3cret@host:1/v").unwrap();
    assert_eq!(format!("{url} {url:?}"), "amqp://me@host:1/v amqp://me@host:1/v");
    url.hide_password();
    assert_eq!(output::message("no user me with s3cret"), "no user me with ***");
}

#[test]
fn only_a_secret_in_clear_is_exposed() {
    let exposes = |text: &str| BrokerUrl::parse(text).unwrap().exposes_password();
    assert!(exposes("amqp://u:secret@broker.example"));
    for safe in ["amqp://broker.example", "amqps://u:secret@broker.example", "amqp://u:secret@localhost"] {
        assert!(!exposes(safe), "{safe}");
    }
}

#[test]
fn loopback_is_recognised() {
    for (host, expected) in [
        ("localhost", true),
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("[::1]", true),
        ("[::ffff:127.0.0.1]", true),
        ("10.0.0.1", false),
        ("localhost.example.org", false),
    ] {
        assert_eq!(BrokerUrl::parse(&format!("amqp://{host}")).unwrap().is_loopback(), expected, "{host}");
    }
}
