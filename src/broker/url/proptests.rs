//! URLs of all forms, and passwords that must not come out of them again.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// Part of every password here.
const SECRET: &str = "S3CRET";

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "%{byte:02X}");
        out
    })
}

proptest! {
    #[test]
    fn nothing_that_is_written_breaks_it(text in any::<String>()) {
        let _ = BrokerUrl::parse(&text);
        let _ = BrokerUrl::parse_list(&text);
        let _ = output::foreign(&text);
    }

    #[test]
    fn nothing_like_a_url_breaks_it(text in "(amqps?://)?[a-z:@/%?&=,\\[\\]#0-9A-F.]{0,40}") {
        let _ = BrokerUrl::parse(&text);
        let _ = BrokerUrl::parse_list(&text);
    }

    /// However many characters of it should have been escaped.
    #[test]
    fn a_password_is_in_no_message(
        scheme in "amqp|amqps|http|",
        user in "[a-z0-9]{0,3}",
        before in "[0-9/?#@:&=%,]{0,4}",
        after in "[0-9/?#@:&=%,]{0,4}",
        host in "(host|\\[::1\\]|)(:[0-9]{1,5})?(/[a-z]{0,3})?(\\?[a-z]{0,3}=[0-9]{0,3})?",
    ) {
        let text = format!("{scheme}://{user}:{before}{SECRET}{after}@{host}");
        let told = match BrokerUrl::parse_list(&text) {
            Ok(urls) => format!("{urls:?}") + &urls.iter().map(ToString::to_string).collect::<String>(),
            Err(error) => error.to_string(),
        };
        prop_assert!(!told.contains(SECRET), "{}: {}", text, told);
        let quoted = output::foreign(format!("unexpected '{text}' found"));
        prop_assert!(!quoted.contains(SECRET), "{}", quoted);
    }

    #[test]
    fn escaped_parts_are_read_again(
        user in "[^\\x00]{1,20}",
        password in "[^\\x00]{0,20}",
        vhost in "[^\\x00]{1,20}",
        port in 1..=u16::MAX,
    ) {
        let text = format!("amqps://{}:{}@h.example:{port}/{}", escaped(&user), escaped(&password), escaped(&vhost));
        let url = BrokerUrl::parse(&text);
        prop_assert!(url.is_ok(), "{:?}", url);
        if let Ok(url) = url {
            let same = url.credentials == Credentials::Plain { user, password };
            prop_assert!(same, "another user or password");
            prop_assert_eq!((url.vhost, url.host.as_str(), url.port), (vhost, "h.example", port));
        }
    }
}
