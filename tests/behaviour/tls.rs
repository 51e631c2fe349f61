//! `amqps://`: a private CA, client certificates, and what must be refused.

use crate::support::script::{Script, hold};
use crate::support::{Finished, Invocation, Node, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// The node with a TLS listener, and the directory of the certificates.
struct Tls {
    node: Node,
    dir: PathBuf,
}

fn openssl(dir: &Path, args: &[&str]) {
    let output = Command::new("openssl").current_dir(dir).args(args).output().expect("openssl is needed");
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn authority(dir: &Path, name: &str) {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
    let subject = format!("/CN=taskq tests {name}");
    let args = ["req", "-x509", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &certificate];
    openssl(dir, &[&args[..], &NEW_KEY].concat());
}

fn certificate(dir: &Path, name: &str, authority: &str, extension: &str) {
    certificate_for(dir, name, authority, extension, "2");
}

fn certificate_for(dir: &Path, name: &str, authority: &str, extension: &str, days: &str) {
    let [key, request, pem] = ["key", "csr", "pem"].map(|ending| format!("{name}.{ending}"));
    let subject = format!("/CN=taskq-tests-{name}");
    let args = ["req", "-subj", &subject, "-keyout", &key, "-out", &request];
    openssl(dir, &[&args[..], &NEW_KEY].concat());
    std::fs::write(dir.join("extension"), extension).unwrap();
    let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}.key"));
    let args =
        ["x509", "-req", "-days", days, "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
    openssl(dir, &[&args[..], &["-extfile", "extension", "-out", &pem]].concat());
}

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tls");
        std::fs::create_dir_all(&dir).unwrap();
        authority(&dir, "ca");
        authority(&dir, "stranger");
        // For one name only: the address is a wrong name.
        certificate(&dir, "server", "ca", "subjectAltName = DNS:localhost");
        certificate_for(&dir, "expired", "ca", "subjectAltName = DNS:localhost", "-1");
        certificate(&dir, "client", "ca", "extendedKeyUsage = clientAuth");
        certificate(&dir, "impostor", "stranger", "extendedKeyUsage = clientAuth");
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let settings = [
            "listeners.ssl.1 = 127.0.0.1:@spare_port@".to_owned(),
            format!("ssl_options.cacertfile = {}", at("ca.pem")),
            format!("ssl_options.certfile = {}", at("server.pem")),
            format!("ssl_options.keyfile = {}", at("server.key")),
            "ssl_options.verify = verify_peer".to_owned(),
            "ssl_options.fail_if_no_peer_cert = false".to_owned(),
        ];
        let node = Node::serve(&settings.each_ref().map(String::as_str));
        Tls { node, dir }
    })
}

fn path(name: &str) -> String {
    tls().dir.join(name).to_str().unwrap().to_owned()
}

fn url(scheme: &str, host: &str, port: u16) -> String {
    format!("{scheme}://guest:guest@{host}:{port}")
}

fn good_url() -> String {
    url("amqps", "localhost", tls().node.spare_port())
}

fn taskq(sandbox: &Sandbox, url: &str, args: &[&str]) -> Invocation {
    sandbox.taskq(args).without_env("TASKQ_URL").env("TASKQ_URL", url)
}

/// It fails within its time-out and in one line.
#[track_caller]
fn refused(url: &str, options: &[&str]) -> Finished {
    let sandbox = Sandbox::on(&tls().node);
    let args = [&["send", "--connect-timeout", "3s", "hello"], options].concat();
    let refused = taskq(&sandbox, url, &args).start().end_within(Duration::from_secs(20));
    let refused = refused.exits_with_one_of(&[69, 77, 78]).in_one_line();
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something was sent");
    refused
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    let sandbox = Sandbox::on(&tls().node);
    let ca = path("ca.pem");
    taskq(&sandbox, &good_url(), &["send", "--tls-ca", &ca, "hello"]).run().exits(0);
    let worked = taskq(&sandbox, &good_url(), &["work", "--tls-ca", &ca, "--until-empty"]).run().exits(0);
    worked.says("Received a message: hello\nDone\n");
}

#[test]
fn a_client_certificate_is_shown_to_the_broker() {
    let sandbox = Sandbox::on(&tls().node);
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let options = ["work", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let worker = taskq(&sandbox, &good_url(), &options).start();
    worker.says("[*] Waiting");
    let subjects = sandbox.node().ctl(&["list_connections", "peer_cert_subject"]);
    assert!(subjects.contains("taskq-tests-client"), "{subjects}");
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

#[test]
fn large_bodies_and_many_tasks_go_through() {
    let sandbox = Sandbox::on(&tls().node);
    let ca = path("ca.pem");
    let body = "x".repeat(5_000_000);
    taskq(&sandbox, &good_url(), &["send", "--tls-ca", &ca, "--file", "-"]).feed(&body).exits(0);
    assert_eq!(sandbox.broker().take(&sandbox.queue).body.len(), body.len());
    taskq(&sandbox, &good_url(), &["send", "--tls-ca", &ca, "--lines"]).feed("x\n".repeat(3000)).exits(0);
    let options = ["work", "--tls-ca", &ca, "--threads", "4", "--until-empty"];
    let worked = taskq(&sandbox, &good_url(), &options).run().exits(0);
    assert_eq!(worked.stderr.matches("Done").count(), 3000);
}

#[test]
fn an_unknown_authority_is_refused() {
    refused(&good_url(), &[]).exits(77).says("not trusted").says("--tls-ca");
    refused(&good_url(), &["--tls-ca", &path("stranger.pem")]).exits(77).says("not trusted");
}

#[test]
fn an_expired_certificate_is_refused_as_such() {
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let identity = native_tls::Identity::from_pkcs8(&read("expired.pem"), &read("expired.key")).unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let server = Script::run(move |stream| {
        let _ = acceptor.accept(&mut *stream);
        hold(stream)
    });
    let url = server.url().replace("amqp://", "amqps://").replace("127.0.0.1", "localhost");
    refused(&url, &["--tls-ca", &path("ca.pem")]).exits(77).says("has expired");
    // The name is looked at no less.
    let url = url.replace("localhost", "127.0.0.1");
    refused(&url, &["--tls-ca", &path("ca.pem")]).exits(77).says("certificate");
}

/// Lets the node take users at their certificates' word, as its plugin does when it is enabled at the start.
const ENABLE_EXTERNAL: &str = r#"
    Plugins = filename:join(code:lib_dir(rabbit), ".."),
    [Code] = filelib:wildcard(filename:join(Plugins, "rabbitmq_auth_mechanism_ssl-*/ebin")),
    true = code:add_patha(Code),
    ok = application:set_env(rabbitmq_auth_mechanism_ssl, name_from, common_name),
    ok = application:set_env(rabbit, ssl_cert_login_from, common_name),
    ok = rabbit_registry:register(auth_mechanism, <<"EXTERNAL">>, rabbit_auth_mechanism_ssl),
    ok = application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN', 'EXTERNAL'])."#;

#[test]
fn a_client_certificate_can_stand_for_user_and_password() {
    let sandbox = Sandbox::on(&tls().node);
    let url = format!("amqps://localhost:{}?auth_mechanism=external", tls().node.spare_port());
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let identity = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let send = || taskq(&sandbox, &url, &[&["send", "hello"], &identity[..]].concat()).run();
    send().exits(77).in_one_line().says("EXTERNAL");
    sandbox.node().ctl(&["eval", ENABLE_EXTERNAL]);
    // The broker knows nobody of that name.
    send().exits(77).in_one_line().says("certificate").never_says("guest");
    sandbox.node().ctl(&["add_user", "taskq-tests-client", "not used"]);
    sandbox.node().ctl(&["set_permissions", "taskq-tests-client", ".*", ".*", ".*"]);
    send().exits(0);
    let worked = taskq(&sandbox, &url, &[&["work", "--until-empty"], &identity[..]].concat()).run();
    worked.exits(0).says("Received a message: hello\nDone\n");
    let without = taskq(&sandbox, &url, &["send", "--tls-ca", &ca, "hello"]).run();
    without.exits(77).in_one_line();
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let port = tls().node.spare_port();
    let refused = refused(&url("amqps", "127.0.0.1", port), &["--tls-ca", &path("ca.pem")]);
    refused.exits(77).says("certificate is not for 127.0.0.1");
}

#[test]
fn a_client_certificate_of_an_unknown_authority_is_refused() {
    let (ca, cert, key) = (path("ca.pem"), path("impostor.pem"), path("impostor.key"));
    // Whether the refusal or the next write comes first is a matter of chance.
    for _ in 0..10 {
        let refused = refused(&good_url(), &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key]);
        refused.exits(77).says("the broker refused TLS");
    }
}

#[test]
fn plain_amqp_to_the_tls_port_ends_in_time() {
    refused(&url("amqp", "localhost", tls().node.spare_port()), &[]).exits(69).says("TLS");
}

#[test]
fn tls_to_the_plain_port_ends_in_time() {
    let refused = refused(&url("amqps", "localhost", tls().node.port()), &["--tls-ca", &path("ca.pem")]);
    refused.exits(69).says("no TLS is spoken on this port");
}

#[test]
fn tls_to_a_silent_server_ends_in_time() {
    let silent = Script::run(hold);
    refused(&silent.url().replace("amqp://", "amqps://"), &[]).exits(69).says("connect timeout");
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let missing = path("missing.pem");
    refused(&good_url(), &["--tls-ca", &missing]).exits(78).says("missing.pem");
    refused(&good_url(), &["--tls-ca", &path("extension")]).exits(78).says("extension");
    let (ca, cert, wrong) = (path("ca.pem"), path("client.pem"), path("server.key"));
    refused(&good_url(), &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &wrong]).exits(78);
}

#[test]
fn a_certificate_without_its_key_is_a_usage_error() {
    let sandbox = Sandbox::on(&tls().node);
    taskq(&sandbox, &good_url(), &["send", "--tls-cert", &path("client.pem"), "hello"]).run().exits(2);
    taskq(&sandbox, &good_url(), &["send", "--tls-key", &path("client.key"), "hello"]).run().exits(2);
}
