echo "$$ $RANDOM $SECONDS $(date +%s.%N)"
for i in $(seq 20); do echo "$RANDOM $i"; done | sort -n | head -n 5
tr a-f A-F </proc/sys/kernel/random/uuid
(sleep 0.01; echo "first $BASHPID") &
(echo "second $BASHPID") &
wait
x=$(printf 'some words' | wc -c)
echo "$x ${PIPESTATUS[*]}"
trap 'echo a signal' USR1
kill -USR1 $$
echo file >beside; cat beside; stat -c '%i %Y' beside; rm beside
while read -r word; do echo "<$word>"; done < <(printf '%s\n' one two three)
false | true | (exit 3); echo "${PIPESTATUS[*]}"
echo done
