# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of mcctl's commands, guests and options.
_mcctl() {
	local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[1]} words
	if [ "$COMP_CWORD" -eq 1 ]; then
		words=$(mcctl --help 2>/dev/null | sed -n 's/^  \([a-z-]*\) .*/\1/p')
	elif [[ $cur == -* ]]; then
		words=$(mcctl --help 2>/dev/null | sed -n '/^options/,$p' | grep -o -- '--[a-z-]*')
		case $cmd in
		status) words="--json --check" ;;
		events) words="--json" ;;
		metrics) words="--prometheus" ;;
		top) words="--once --rounds" ;;
		failover) words="--planned" ;;
		esac
	elif [ "$COMP_CWORD" -eq 2 ]; then
		words=$(mcctl status 2>/dev/null | sed -n '2,$s/ .*//p')
	elif [ "$cmd" = resolve ]; then
		words="promote demote"
	elif [ "$cmd" = restart ] || [ "$cmd" = workers ]; then
		words="capture stage transport netgate restore"
	fi
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -o default -F _mcctl mcctl
