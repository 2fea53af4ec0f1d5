# The README's reference of options is the program's own, and the commands that it shows are accepted.
FORERUN=$forerun tests/tools/readme_reference.sh --check && pass || fail "README.md: run make reference"
expect 0 simulate --model qwen3-235b-a22b --machine h200x8 --precision fp8 --strategy asyncep --tokens 16K --seq 4K --forwards 1
expect 0 plan --model qwen3-235b-a22b --machine h200x8 --precision fp8 --strategy ep --tokens 16K
expect 0 list figures
# links between pages lead somewhere
broken=$(git ls-files '*.md' | while read -r page; do
    grep -o '](\([^)#]*\)' "$page" | sed 's/](//' | grep -v '^http' | while read -r link; do
        [ -e "$(dirname "$page")/$link" ] || echo "$page: $link"
    done
done)
[ -z "$broken" ] && pass || fail "links that lead nowhere" "$broken"
