//! Users of the broker beside `guest`.

use super::{Node, Sandbox};

/// A user of one test's own: nodes are used again, so no two tests may choose the same name.
pub(crate) struct User<'s> {
    node: &'s Node,
    pub(crate) name: String,
}

impl<'s> User<'s> {
    /// May configure, write and read what these patterns match.
    pub(crate) fn add(sandbox: &'s Sandbox, name: &str, password: &str, permissions: [&str; 3]) -> Self {
        let user = Self { node: sandbox.node(), name: format!("{name}-{}", sandbox.queue) };
        user.node.ctl(&["add_user", &user.name, password]);
        user.may(permissions);
        user
    }

    pub(crate) fn may(&self, [configure, write, read]: [&str; 3]) {
        self.node.ctl(&["set_permissions", &self.name, configure, write, read]);
    }

    /// With the password as it has to stand in a URL.
    pub(crate) fn url(&self, password: &str) -> String {
        self.url_at(self.node.port(), password)
    }

    /// At another port, where a proxy listens.
    pub(crate) fn url_at(&self, port: u16, password: &str) -> String {
        format!("amqp://{}:{password}@127.0.0.1:{port}", self.name)
    }
}
