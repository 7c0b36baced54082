#!/bin/bash
#SBATCH --job-name=it-s-a-run
#SBATCH --output='runs/it'"'"'s a run/launch/slurm-%j.log'
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --account=me
#SBATCH --mem=64G

# Made by launch/slurm.py: t5x-like train t5_1_1_base mesh.fsdp=-1 'name=it'"'"'s a run' --directory 'runs/it'"'"'s a run'
launch='runs/it'"'"'s a run/launch'
directory='runs/it'"'"'s a run'
set -- t5x-like train t5_1_1_base mesh.fsdp=-1 'name=it'"'"'s a run' --directory 'runs/it'"'"'s a run'
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}
cancelled=$launch/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}.cancelled
state=$launch/slurm-$id.state
export CODES=$launch/slurm-$id.code DEVICES_EACH=0
[ -e "$cancelled" ] && exit 0
source .venv/bin/activate
if [ "${SLURM_RESTART_COUNT:-0}" = 0 ] && t5x-like check --help >/dev/null 2>&1; then
    t5x-like check "${@:3}" --cluster slurm --topology gpu:16 || { [ $? = 2 ] && exit 2; }
fi

node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((61440 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 4096))
rm -f "$CODES".*
echo "job $id, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_NTASKS processes on $SLURM_JOB_NODELIST"
JAX_COORDINATOR_ADDRESS=$node:$port srun --kill-on-bad-exit=1 --label bash -c '
export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
[ $DEVICES_EACH = 0 ] || export JAX_LOCAL_DEVICE_IDS=$(seq -s , $((SLURM_LOCALID * DEVICES_EACH))     $(((SLURM_LOCALID + 1) * DEVICES_EACH - 1)))
told= child=
trap "told=yes; [ -z \$child ] || kill -TERM \$child 2>/dev/null" TERM
"$@" & child=$!
[ -z "$told" ] || kill -TERM $child  # told in between
wait $child; code=$?
while [ "$told" ]; do told=; stopped=yes; wait $child; code=$?; done
[ "$code" = 143 ] && [ "$stopped" ] && code=75  # told before there was anything to save
[ "$code" = 0 ] || echo "$(date +%s.%N) $code" >"$CODES.$SLURM_PROCID"
[ "$code" = 75 ] && exit 0
exit $code
' bash "$@"
code=$?
codes=" $(sort -n "$CODES".* 2>/dev/null | cut -d ' ' -f 2 | tr '\n' ' ') "  # in order of time
rm -f "$CODES".*
case $codes in
*" 2 "*) code=2 ;;                       # a mistake, which they have said
*" 75 "*) [ $code = 0 ] && code=75 ;;    # saved: run me again
*[0-9]*) read -r code _ <<<"$codes" ;;   # the cause, not how srun has ended the others
esac

failures=0 best=-1
[ -e "$state" ] && read -r failures best <"$state"
step=$(ls "$directory/checkpoints" 2>/dev/null | grep -x '[0-9]*' | sort -n | tail -n 1)
step=${step:--1}
[ "$step" -gt "$best" ] && failures=0
case $code in
0 | 2 | 130) rm -f "$state"; exit $code ;;
75) again="saved" ;;
*)
    failures=$((failures + 1))
    again="ended with $code, failure $failures of at most 3 without a new checkpoint"
    ;;
esac
echo "$failures $step" >"$state"
echo "job $id: $again"
[ -e "$cancelled" ] && exit $code
[ $failures -gt 3 ] && exit $code
scontrol requeue "$id" || exit $code
