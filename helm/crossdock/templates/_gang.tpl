{{/* Labels of the RayCluster that tell KubeRay's batch scheduler, or Kueue, what to do with it. */}}
{{- define "crossdock.gangLabels" -}}
{{- $gang := .Values.gangScheduling }}
{{- if eq $gang.scheduler "volcano" }}
ray.io/gang-scheduling-enabled: "true"
{{- with $gang.queue }}
volcano.sh/queue-name: {{ . | quote }}
{{- end }}
{{- else if eq $gang.scheduler "yunikorn" }}
ray.io/gang-scheduling-enabled: "true"
{{- /* Unlike names, the ids of applications are those of all namespaces. */}}
yunikorn.apache.org/app-id: {{ printf "%s-%s" .Release.Namespace (include "crossdock.fullname" .) | trunc 63 | trimSuffix "-" | quote }}
{{- with $gang.queue }}
yunikorn.apache.org/queue: {{ . | quote }}
{{- end }}
{{- else if eq $gang.scheduler "kueue" }}
kueue.x-k8s.io/queue-name: {{ required "gangScheduling.queue: name the LocalQueue of Kueue" $gang.queue | quote }}
{{- else if eq $gang.scheduler "kai" }}
kai.scheduler/queue: {{ required "gangScheduling.queue: name the queue of KAI" $gang.queue | quote }}
{{- end }}
{{- end }}
