/**
 * How many of each an organization may have (serverless-platform.md 4.5, control-plane.md 5.8): iam refuses one more, and quota shows it. They
 * stand here because neither of the two rooms looks at the other, and what is shown has to be what holds.
 */
export const MAXIMA = { api_key: 50, application: 100, group: 50, policy: 50, project: 25, user: 50 } as const
