//! Broker URLs: parsed by taskq itself, because a URL library's errors would print the password.

#[cfg(test)]
mod proptests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::output;
use crate::percent;

/// Where an `amqp` URL without a port leads.
const AMQP_PORT: u16 = 5672;
/// Where an `amqps` URL without a port leads.
const AMQPS_PORT: u16 = 5671;
/// RabbitMQ's own default, for user and password.
const DEFAULT_PASSWORD: &str = "guest";
/// User, vhost and the like travel as short strings or in one frame; nothing sensible is longer.
const MAX_PART: usize = 255;

/// How to prove who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Plain {
        /// The user's name.
        user: String,
        /// Never printed.
        password: String,
    },
    /// By the client certificate (`auth_mechanism=external`).
    External,
}

/// One parsed broker URL. `Display` and `Debug` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// `amqps`.
    pub tls: bool,
    /// Who we are.
    pub credentials: Credentials,
    /// A name or an address, without the brackets of IPv6.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The virtual host; `/` unless given.
    pub vhost: String,
    /// `heartbeat` parameter, in whole seconds on the wire.
    pub heartbeat: Option<Duration>,
    /// `connection_timeout` parameter (milliseconds).
    pub connect_timeout: Option<Duration>,
    /// `channel_max` parameter.
    pub channel_max: Option<u16>,
}

impl BrokerUrl {
    /// Parses one URL: `amqp[s]://[user[:password]@]host[:port][/vhost][?parameters]`, percent escapes in user,
    /// password and vhost.
    ///
    /// # Errors
    /// Usage, saying which part is wrong, without repeating the part that may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| bad("it does not start with amqp:// or amqps://"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(bad("its scheme is neither amqp nor amqps")),
        };
        if rest.contains('#') {
            return Err(bad("it has a fragment (#...); write a # in a password as %23"));
        }
        // Otherwise the head of a password would be the host, and its tail a vhost, which is printed.
        if rest.split_once(['/', '?']).is_some_and(|(_, tail)| tail.contains('@')) {
            return Err(bad(
                "an @ follows a / or ?; write these as %2F, %3F and %40 in a user, password or vhost",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        // The last @: an unescaped one in a password is common, and hosts cannot hold it.
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((userinfo, host_port)) => (Some(userinfo), host_port),
            None => (None, authority),
        };
        let (host, port) = parse_host_port(host_port)?;
        let mut url = Self {
            tls,
            credentials: parse_credentials(userinfo)?,
            host,
            port: port.unwrap_or(if tls { AMQPS_PORT } else { AMQP_PORT }),
            vhost: parse_vhost(path)?,
            heartbeat: None,
            connect_timeout: None,
            channel_max: None,
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            url.set_parameter(parameter)?;
        }
        Ok(url)
    }

    /// Parses a comma-separated list. A comma only separates where another URL follows it, so that one in a
    /// password does no harm.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        let mut urls = Vec::new();
        let mut rest = text.trim();
        loop {
            let end = rest
                .match_indices(',')
                .map(|(at, _)| at)
                .find(|&at| starts_like_url(rest[at + 1..].trim_start()))
                .unwrap_or(rest.len());
            let one = rest[..end].trim().trim_end_matches(',').trim_end();
            if !one.is_empty() {
                urls.push(Self::parse(one)?);
            }
            match rest.get(end + 1..) {
                Some(next) => rest = next.trim_start(),
                None => break,
            }
        }
        if urls.is_empty() {
            return Err(bad("it is empty"));
        }
        Ok(urls)
    }

    /// `host:port`, for messages and for TCP.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the host, as written, is this machine, so that a password in clear cannot be overheard.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V6(v6)) => {
                v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback())
            }
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost") || self.host.ends_with(".localhost"),
        }
    }

    /// Whether a password that is a secret would cross the network in clear. The default one is none.
    #[must_use]
    pub fn exposes_password(&self) -> bool {
        self.holds_secret() && !self.tls && !self.is_loopback()
    }

    /// Whether it holds a password that is a secret.
    #[must_use]
    pub fn holds_secret(&self) -> bool {
        matches!(&self.credentials, Credentials::Plain { password, .. } if password != DEFAULT_PASSWORD)
    }

    /// Keeps its password out of all messages from now on. One that is also the user's name is no secret.
    pub fn hide_password(&self) {
        if let Credentials::Plain { user, password } = &self.credentials
            && user != password
        {
            output::hide(password);
        }
    }

    fn set_parameter(&mut self, parameter: &str) -> Result<()> {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "heartbeat" => {
                let seconds: u16 = number(name, value)?;
                if seconds == 0 {
                    return Err(bad("heartbeat=0 would turn off the only way to notice a dead broker"));
                }
                self.heartbeat = Some(Duration::from_secs(u64::from(seconds)));
            }
            "connection_timeout" => {
                let millis: u32 = number(name, value)?;
                if millis == 0 {
                    return Err(bad("connection_timeout=0 would never connect"));
                }
                self.connect_timeout = Some(Duration::from_millis(u64::from(millis)));
            }
            "channel_max" => self.channel_max = Some(number(name, value)?),
            "auth_mechanism" if value.eq_ignore_ascii_case("external") => {
                self.credentials = Credentials::External;
            }
            "auth_mechanism" if value.eq_ignore_ascii_case("plain") => {}
            "auth_mechanism" => return Err(bad("auth_mechanism is neither plain nor external")),
            // The name may be the tail of a password with an unescaped question mark, so it is not repeated.
            _ => {
                return Err(bad(
                    "it has an unknown parameter; known are heartbeat (s), connection_timeout (ms), channel_max \
                     and auth_mechanism (and a ? in a password is written %3F)",
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        match &self.credentials {
            Credentials::Plain { user, .. } => {
                write!(f, "{scheme}://{}@{}", output::foreign(user), self.address())?;
            }
            Credentials::External => write!(f, "{scheme}://{}", self.address())?,
        }
        if self.vhost == "/" { Ok(()) } else { write!(f, "/{}", output::foreign(&self.vhost)) }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn bad(what: &str) -> Error {
    Error::usage(format!("malformed broker URL: {what} (expected amqp[s]://user:password@host:port/vhost)"))
}

fn starts_like_url(text: &str) -> bool {
    ["amqp://", "amqps://"]
        .iter()
        .any(|scheme| text.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme)))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| bad(&format!("its parameter {name} is no number in range")))
}

fn parse_credentials(userinfo: Option<&str>) -> Result<Credentials> {
    let (user, password) = match userinfo {
        None => ("guest".to_owned(), "guest".to_owned()),
        Some(userinfo) => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, "guest"));
            let user = if user.is_empty() { "guest" } else { user };
            (percent_decode(user, "user")?, percent_decode(password, "password")?)
        }
    };
    // PLAIN separates the two by NUL bytes.
    if user.contains('\0') || password.contains('\0') {
        return Err(bad("its user or password holds a NUL"));
    }
    Ok(Credentials::Plain { user, password })
}

fn parse_host_port(text: &str) -> Result<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(|| bad("its [ has no ]"))?;
        // A zone (fe80::1%eth0, written %25 in URLs) is resolved by the system.
        let plain = address.split('%').next().unwrap_or_default();
        plain.parse::<std::net::Ipv6Addr>().map_err(|_| bad("no IPv6 address stands between [ and ]"))?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or_else(|| bad("something other than a port follows ]"))?),
        };
        (address.replace("%25", "%"), port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        }
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(bad("its port is no number from 1 to 65535 (write IPv6 addresses in [ ])")),
        },
    };
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    let fits = host.len() <= MAX_PART && host.chars().all(|c| c.is_alphanumeric() || "-._:%".contains(c));
    if !fits {
        return Err(bad("its host has characters that no host name has"));
    }
    Ok((host, port))
}

fn parse_vhost(path: Option<&str>) -> Result<String> {
    let vhost = match path {
        None | Some("") => return Ok("/".to_owned()),
        Some(path) if path.contains('/') => {
            return Err(bad("its vhost has a second /; write a / inside a vhost as %2F"));
        }
        Some(path) => percent_decode(path, "vhost")?,
    };
    if vhost.len() > MAX_PART {
        return Err(bad("its vhost is longer than 255 bytes"));
    }
    Ok(vhost)
}

fn percent_decode(text: &str, part: &str) -> Result<String> {
    let wrong = || bad(&format!("its {part} has a % that is not followed by two hexadecimal digits"));
    let bytes = percent::decode(text).ok_or_else(wrong)?;
    String::from_utf8(bytes).map_err(|_| bad(&format!("its {part} is not UTF-8 when unescaped")))
}
