#!/bin/sh
# taskq work --persistent -- examples/handlers/handler.sh
# One task per line in, one answer per line out; everything for people goes to stderr. The body comes last in the line.
# It is cut out here as it stands in the JSON, which is enough for plain words: for more, use jq or another language.
while IFS= read -r task; do
    body=${task##*'"body":"'} body=${body%'"}'}
    printf 'working on %s\n' "$body" >&2
    case $body in
    later*) echo 'RETRY not yet' ;;
    never*) echo 'DEAD makes no sense' ;;
    *) echo OK ;;
    esac
done
