//! The brokers to try, and where their URLs are read again when a password has changed.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::url::BrokerUrl;
use crate::error::Result;
use crate::lock::lock;

type Read = dyn Fn() -> Result<Vec<BrokerUrl>> + Send + Sync;

/// See the module. Clones are the same list.
#[derive(Clone)]
pub struct UrlList {
    current: Arc<Mutex<Vec<BrokerUrl>>>,
    read: Option<Arc<Read>>,
}

impl UrlList {
    /// Stays as it is.
    #[must_use]
    pub fn fixed(urls: Vec<BrokerUrl>) -> Self {
        Self { current: Arc::new(Mutex::new(urls)), read: None }
    }

    /// What `read` returns now, and again after access was refused.
    pub fn reading(read: impl Fn() -> Result<Vec<BrokerUrl>> + Send + Sync + 'static) -> Result<Self> {
        Ok(Self { current: Arc::new(Mutex::new(read()?)), read: Some(Arc::new(read)) })
    }

    /// To be tried in turn, from a random one on.
    #[must_use]
    pub fn current(&self) -> Vec<BrokerUrl> {
        lock(&self.current).clone()
    }

    /// Whether they are others now. What cannot be read now, because it is just being written, stays as it was.
    pub(super) fn read_again(&self) -> bool {
        let Some(Ok(urls)) = self.read.as_ref().map(|read| read()) else { return false };
        let mut current = lock(&self.current);
        let changed = *current != urls;
        *current = urls;
        changed
    }
}

impl fmt::Debug for UrlList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn urls_are_read_again_and_kept_where_that_fails() {
        let text = Arc::new(Mutex::new("amqp://a:old@h".to_owned()));
        let file = Arc::clone(&text);
        let list = UrlList::reading(move || match lock(&file).as_str() {
            "" => Err(Error::configuration("it is empty")),
            text => BrokerUrl::parse_list(text),
        })
        .unwrap();
        let old = list.current();
        assert!(!list.read_again());
        lock(&text).clear();
        assert!(!list.read_again() && list.current() == old);
        "amqp://a:new@h".clone_into(&mut lock(&text));
        assert!(list.clone().read_again() && list.current() != old && !list.read_again());
        assert!(!UrlList::fixed(old).read_again());
    }
}
