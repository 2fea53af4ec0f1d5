# Sourced: cells PART prints "NAME<TAB>FLAGS" of the set's cells that belong to a part, all of them for PART "all".
cells() {
    local here name parts flags
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    while IFS='|' read -r name parts flags; do
        name=${name//[[:space:]]/}
        [[ -z $name || $name == \#* ]] && continue
        [[ $1 == all || " $parts " == *" $1 "* ]] || continue
        printf '%s\t%s\n' "$name" "${flags//CELLS/$here}"
    done <"${SET:-$here/set.txt}"
}
# machine PART: the machine whose name stands in --machine
machine() {
    case $1 in h) echo h100x1 ;; two | s2) echo h200x2 ;; four*) echo h200x4 ;; eight) echo h200x8 ;; *) echo h200x1 ;; esac
}
