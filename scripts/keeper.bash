# shellcheck shell=bash
# Nodes that end with a process: `serve` and `with` of rabbitmq-node and rabbitmq-cluster, which source this. Both have
# `start DIR [OPTION]...`, which leaves the URL in DIR/env, and `remove DIR`; here they are $self, $dir and $options.
# With `--keep`, which rabbitmq-node has, the node is left with `close DIR` instead, and taken up again by the next one.

set_dir() {
    [[ -n ${1-} ]] || usage
    dir=$(realpath -m "$1")
    # Erlang splits some of these paths at spaces.
    [[ $dir != *[[:space:]]* ]] || die "the directory's path must not contain white space: $dir"
}

# Waits too, or the shell would report how it ended.
end_starter() {
    [[ -z $starter ]] || { kill -KILL -- "$starter" "-$starter" && wait "$starter"; } 2>/dev/null || true
}

# How the node is left in the end, whatever state it is in then.
leave() {
    # shellcheck disable=SC2154 # the two scripts set keep
    if [[ -z $keep ]]; then "$self" remove "$dir"; else "$self" close "$dir"; fi
}

serve() {
    # shellcheck disable=SC2154 # the two scripts set self and options
    # A terminal's Ctrl-C, or a kill of the whole process group, is not for this process: it ends when stdin does.
    if [[ -z ${TASKQ_NODE_SERVE-} && ! -t 0 ]]; then
        TASKQ_NODE_SERVE=1 exec setsid --wait "$self" serve "$dir" "${options[@]}"
    fi
    unset TASKQ_NODE_SERVE
    # What a killed session left, or what is somebody's.
    if something_runs; then die "a node runs in $dir already"; fi
    [[ ! -e $dir/env || -n $keep ]] || "$self" remove "$dir"
    trap '' PIPE
    # Not local, as the trap runs outside of this function too.
    starter=
    trap 'trap "" INT TERM HUP; end_starter; leave' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    # In the background, so that a signal ends a boot too; in a group of its own, to end it with its children.
    setsid "$self" start "$dir" "${options[@]}" </dev/null >/dev/null &
    starter=$!
    wait "$starter" || { starter= && exit 1; }
    starter=
    # shellcheck source=/dev/null
    source "$dir/env"
    # Nobody there to read it: stdin has ended too.
    echo "ready $URL" 2>/dev/null || exit 0
    while read -r _; do :; done
}

# Whether the terminal sends its Ctrl-C to this process group, and so to the program as well.
in_foreground() {
    local stat
    stat=$(</proc/$$/stat)
    # After the name in parentheses: state, ppid, pgrp, session, tty, tpgid.
    read -r _ _ pgrp _ _ tpgid _ <<<"${stat##*) }"
    [[ $pgrp == "$tpgid" ]]
}

with() {
    local keeper to_keeper from_keeper answer='' stdin stdout ended='' program='' signalled='' interrupted
    [[ -n $dir ]] || set_dir "$(mktemp -d "${TMPDIR:-/tmp}/taskq-node.XXXXXX")"

    # The keeper has its own session and removes the node when the pipe from here closes, however this process ends.
    coproc KEEPER { exec "$self" serve "$dir" "${options[@]}"; }
    keeper=$KEEPER_PID to_keeper=${KEEPER[1]} from_keeper=${KEEPER[0]}

    # shellcheck disable=SC2317 # called by a trap
    finish() {
        trap '' INT TERM HUP
        # It looks at the pipe only once the node is ready.
        [[ -n $answer ]] || kill -TERM "$keeper" 2>/dev/null || true
        exec {to_keeper}>&- {from_keeper}<&-
        wait "$keeper" || true
    }
    trap finish EXIT
    # shellcheck disable=SC2317 # called by a trap
    pass_on() {
        interrupted=yes
        # A second signal: whatever the program does about it, the node ends.
        [[ -z $signalled && -n $ended ]] || exit $((128 + $2))
        signalled=$1
        [[ -n $program ]] || return 0
        if [[ $1 != INT ]] || ! in_foreground; then kill "-$1" "$program" 2>/dev/null || true; fi
    }
    trap 'pass_on INT 2' INT
    trap 'pass_on TERM 15' TERM
    trap 'pass_on HUP 1' HUP

    read -r -u "$from_keeper" answer || true
    [[ $answer == 'ready '* ]] || exit 1
    export TASKQ_URL=${answer#ready } TASKQ_NODE_DIR=$dir

    # A shell that has traps can miss the end of a child when a signal interrupts its `wait` at that moment, as Ctrl-C
    # does, and then waits for ever. So a process without any waits for PROGRAM, and tells through a pipe.
    exec {stdin}<&0 {stdout}>&1
    exec {ended}< <(
        trap '' INT TERM HUP
        exec {to_keeper}>&- {from_keeper}<&-
        # A background process of a shell ignores INT and reads nothing, which is not what PROGRAM expects.
        (
            trap - INT QUIT TERM HUP
            exec <&"$stdin" >&"$stdout" {stdin}<&- {stdout}>&-
            exec "$@"
        ) &
        echo $!
        # Without the shell's own report of a program that was killed.
        wait $! 2>/dev/null && status=0 || status=$?
        echo "$status"
    )
    told() {
        REPLY=
        while interrupted='' && ! read -r -u "$ended" && [[ -n $interrupted && -z $REPLY ]]; do :; done
    }
    told
    program=$REPLY
    # What came before its pid was known.
    [[ -z $signalled ]] || kill "-$signalled" "$program" 2>/dev/null || true
    told
    exit "${REPLY:-1}"
}

# with [--dir DIR] [OPTION]... -- PROGRAM [ARG]...
with_arguments() {
    local arguments=()
    while (($#)) && [[ $1 != -- ]]; do
        if [[ $1 == --dir ]]; then
            set_dir "${2-}"
            shift 2
        else
            arguments+=("$1")
            shift
        fi
    done
    [[ $# -ge 2 ]] || usage
    shift
    parse_options "${arguments[@]}"
    with "$@"
}
