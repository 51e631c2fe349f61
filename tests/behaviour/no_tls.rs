//! A taskq that was built without TLS says so.

use crate::support::Sandbox;

#[test]
fn a_tls_url_is_an_error_that_names_the_feature() {
    let sandbox = Sandbox::new();
    for command in ["send", "work"] {
        let failed = sandbox.taskq([command, "--url", "amqps://guest:opensesame@localhost"]).run();
        failed.exits_with_one_of(&[2, 78]).in_one_line().says("TLS").never_says("opensesame");
    }
}
