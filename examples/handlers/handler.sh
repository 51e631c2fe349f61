#!/bin/sh
# taskq work --persistent -- examples/handlers/handler.sh
# One task per line in, one answer per line out; everything for people goes to stderr. The body comes last in the line.
# It is cut out here as it stands in the JSON, which is right for plain words only. Nothing else may pass for done: for
# that use jq, or another language.
while IFS= read -r task; do
    case $task in
    *'},"body":"'*) body=${task##*'},"body":"'} body=${body%'"}'} ;;
    *)
        echo 'DEAD the body is no text'
        continue
        ;;
    esac
    printf 'working on %s\n' "$body" >&2
    case $body in
    *\\*) echo 'DEAD the body has characters that JSON escapes' ;;
    later*) echo 'RETRY not yet' ;;
    never*) echo 'DEAD makes no sense' ;;
    *) echo OK ;;
    esac
done
